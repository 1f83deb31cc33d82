"""The runner: turns a Batch into tensors, runs the model once, and samples.

model_runner.py      ModelRunner: one Batch in, one BatchResult out
rows.py              PersistentRows: history, block tables and counts per row, between steps
sampling_columns.py  sampling parameters per row, as columns
step_plan.py         a Batch as arrays: ids, positions, slots, who is sampled and scored
model_input.py       the plan on the device
graph_book.py        how a forward is launched: GraphBook, EagerBook
captured_book.py     CapturedBook: graphs over persistent inputs, recorded on the first step of their size
buckets.py           which shapes have a graph: sizes, and full / piecewise / eager per step
step_inputs.py       the persistent inputs of graphs, padded
layer_words.py       what happens between layers: layers_done, layers_ready, interrupt
sampler.py           logits -> samples, by the rows' parameters
penalties.py         repetition, frequency and presence penalties over the ids a row holds
masks.py             StepMask -> logits
logprobs.py          log-probabilities of chosen and best tokens
dummy_weights.py     random weights from a seed
"""
