"""From images to a trained net.

In: a config, images [N, S, S, C] uint8, a mesh and the folder of the run. Out: the trained net, and
in the folder its checkpoints and the log of its losses. `loop` is the whole training, `step` the
one compiled step, `optimizer` the learning rate and SGD, `checkpoints` the states on disk,
`training_log` the losses, `profiling` a trace of a few steps. Read `loop` first.
"""
