"""What everything stands on: processes and devices, files, progress, signals, command lines.

In: what the operating system and JAX give. Out: `distributed` (a run of several processes),
`sharding` (the mesh and where arrays lie on it), `atomic_files` (files that are whole or absent),
`checksums` (whether files are as they were written), `signals` (Ctrl-C and SIGTERM), `cache` (what
is kept between runs), `progress`, and `arguments` and `command_line`, which every command begins
with.
Nothing here knows images, codes or nets. Read `distributed` first.
"""
