"""Data: index in, example out. Any `torch.utils.data.Dataset` does; these are what it may offer beyond that.

===========================  ==========================================================================================
`read_batch(rows)`           The whole batch of row numbers, an int64 tensor [N], at once: 10 to 30 times as fast as
                             collating samples. Nothing random. Used unless a transform or a `collate_fn` needs samples.
`__getitems__(rows)`         A list of samples for a list of row numbers, as in torch.
`targets`                    Class or value of each row, [rows]: for `split.stratify` and for class weights.
`num_classes`                Checked against the model; says that outputs are classes, whatever the loss.
`class_names`                Written next to predictions.
`is_image`                   Inputs are images [C, H, W]; a few are shown in TensorBoard.
`fit(rows)`                  Learn preprocessing from the training rows, int64 [rows]; called once, before training.
`state_dict()`               What was learned, as tensors and plain data. It goes into the checkpoint, and
`load_state_dict(state)`     comes back in `test.py`, and into the datasets of the other parts.
`is_on_disk`                 Batches are read from files: they cannot be kept in the memory of a GPU.
`decode(outputs)`            Outputs [N, ...] in the target's own units, for predictions.
`row_id(row)`                What a row is called in a file of predictions.
`set_epoch(epoch)`           Iterable datasets: called before each pass.
`seek(num_samples)`          Iterable datasets: the next pass starts behind so many samples; called before each pass.
`is_sharded`                 Iterable datasets: several workers each yield a share (`get_worker_info`), not all of it.
===========================  ==========================================================================================

`docs/data.md` shows each shipped dataset and how to add one.
"""
