"""From images to a trained net.

In: a config, images [N, S, S, C] uint8, a mesh and the folder of the run. Out: the trained net, and
in the folder its checkpoints and the log of its losses. `loop` is the whole training, `sgd` the one
compiled step and the learning rate, `checkpoints` the states on disk, `training_log` the losses.
Read `loop` first.
"""
