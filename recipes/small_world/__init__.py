"""The small world: a generator of short conversations for the demo model.

facts        tables: countries, animals, planets, words, plain facts
phrases      train and held-out phrasings, question frames, surface noise
questions    single questions about the tables
arithmetic   sums, differences, products, word problems
chat         small talk, identity, names, honest refusals
texts        lists, counting, spelling, repeating, translating
stories      stories from scenes, three lengths
structured   answers that are one JSON value
tooluse      tool schemas, tool calls, answers after a tool's response
thinking     short think blocks
followups    multi-turn conversations
mix          weights of the families; the held-out evaluation set
rendering    the chat template and its token-level rendering
"""
