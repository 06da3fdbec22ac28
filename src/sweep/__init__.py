"""Many runs of one config: a sweep over values of its keys, on Ray Tune; repeats with several seeds.

The truth about a sweep is what lies in its folder: each trial is a run like any other, with a `trial.json` beside its
`config.yaml`. Ray decides when and where a trial runs, and which is pruned; it keeps nothing that is needed again.
"""
