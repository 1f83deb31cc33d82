"""What is known of the instances.

view.py      ClusterView: an immutable picture for policies
instance.py  Instance: the state machine of one instance, and the judgement of its health
cluster.py   Cluster: all instances, views, the served model
"""
