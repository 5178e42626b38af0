"""What programs send, against programs whose collectives are known in closed form."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

sys.path.insert(0, str(Path(__file__).parents[2]))

from air_jax.models import winograd
from air_jax.models.net import count_parameters
from air_jax.runtime import sharding
from air_jax.search import device_codes, full_ranking
from air_jax.training import loop
from air_jax.training.step import Phase, compile_step
from benchmarks import communication
from benchmarks.communication import Collective

WHOLE = PartitionSpec()


def found(function, in_specs, out_specs, *shapes):
    """The collectives of `function` under shard_map on a mesh of 2 x 2 devices."""
    axes = (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh((2, 2), ("host", "chip"), axis_types=axes)
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    compiled = jax.jit(mapped).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
    return communication.collectives(compiled.compile().as_text())


@pytest.mark.parametrize(("axes", "devices"), [("host", 2), ("chip", 2), (("host", "chip"), 4)])
def test_a_sum_over_a_mesh_axis_is_an_all_reduce_among_the_devices_along_it(axes, devices):
    each = found(lambda x: jax.lax.psum(x, axes), WHOLE, WHOLE, (10, 3))
    assert each == [Collective("all-reduce", 10 * 3 * 4, 1, devices, False)]
    assert each[0].sent_bytes == pytest.approx(2 * (devices - 1) / devices * 120)


def test_gathering_sends_what_the_other_devices_lack():
    chip = PartitionSpec("chip")
    gathered = found(lambda x: jax.lax.all_gather(x, "chip", tiled=True), chip, WHOLE, (16, 3))
    assert gathered == [Collective("all-gather", 16 * 3 * 4, 1, 2, False)]
    assert gathered[0].sent_bytes == 8 * 3 * 4  # its 8 rows, to the other one


def test_a_collective_in_a_loop_has_no_totals():
    def looped(x):
        return jax.lax.fori_loop(0, 7, lambda i, y: jax.lax.psum(y * i, "chip"), x)

    each = found(looped, WHOLE, WHOLE, (8,))
    assert each == [Collective("all-reduce", 32, 1, 2, True)]
    with pytest.raises(ValueError, match="all-reduce in a loop"):
        communication.totals(each)


def test_among_groups_of_one_device_nothing_is_sent():
    mesh = sharding.make_mesh(jax.devices()[:1])
    mapped = jax.shard_map(
        lambda x: jax.lax.psum(x, "data"), mesh=mesh, in_specs=WHOLE, out_specs=WHOLE
    )
    text = jax.jit(mapped).lower(jnp.ones(8)).compile().as_text()
    assert communication.collectives(text) == []
    assert communication.totals([])["sent_bytes"] == 0


ASYNCHRONOUS = """HloModule jit_f, num_partitions=8, replica_count=1

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b), metadata={op_name="all-reduce(%a), body=%sum {"}
}

%wrapped (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %s = f32[8]{0} all-reduce(%p), replica_groups=[2,4]<=[8], to_apply=%sum
}

ENTRY %main (x: f32[8], y: bf16[4,2]) -> f32[8] {
  %x = f32[8]{0:T(256)} parameter(0)
  %y = bf16[4,2]{1,0:T(8,128)(2,1)} parameter(1)
  %r = (f32[8]{0}, /*index=1*/bf16[4,2]{1,0:T(8,128)(2,1)}) all-reduce-start(%x), replica_groups={}
  %d = (f32[8]{0}, bf16[4,2]{1,0}) all-reduce-done(%r)
  %g = (f32[8]{0}, f32[16]{0}) all-gather-start(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}
  %h = f32[16]{0} all-gather-done(%g)
  %t = ((f32[8]{0}), f32[8]{0}, u32[]) async-start(%x), calls=%wrapped
  %v = f32[8]{0} async-done(%t), calls=%wrapped
  %k = (f8e4m3fn[8]{0}, pred[3]{0}) all-gather(%a, %b), replica_groups=mesh['a'=2,'b'=4] {'b'}
  ROOT %z = f32[8]{0} copy(%o)
}
"""


def test_a_pair_of_start_and_done_is_one_collective_whatever_the_text_notes_beside_it():
    # As compilers for GPUs and TPUs write them; none of these runs on a CPU.
    assert sorted(communication.collectives(ASYNCHRONOUS)) == [
        Collective("all-gather", 8 + 3, 2, 4, False),
        Collective("all-gather", 64, 1, 2, False),
        Collective("all-reduce", 32, 1, 4, False),
        Collective("all-reduce", 32 + 16, 2, 8, False),
    ]


def test_other_text_other_kinds_and_unknown_groups_are_errors():
    with pytest.raises(ValueError, match="expected the text of optimised HLO"):
        communication.collectives("module @jit_f {}")
    with pytest.raises(ValueError, match="unknown form: %p\\), replica_groups=<new>"):
        communication.collectives(ASYNCHRONOUS.replace("[2,4]<=[8]", "<new>"))
    for other in ("reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all"):
        with pytest.raises(ValueError, match=f"another kind .*: {other}"):
            communication.collectives(ASYNCHRONOUS.replace(" all-reduce(", f" {other}("))


def compiled_step(config, mesh, **options):
    half = np.full(3, 0.5, np.float32)
    net, state = loop.new_net_and_state(config, (8, 8, 3), half, half / 2, mesh, 10)
    phase = Phase(0, 10, None)
    compiled, _ = compile_step(config, net, state, phase, (8, 8, 3), mesh, **options)
    text = compiled.as_text()
    return communication.collectives(text), count_parameters(net.params)


@pytest.fixture
def convolves_as_accelerators_do(monkeypatch):
    """Winograd's gradients are added up before they are transformed back, so a CPU sends more."""
    monkeypatch.setattr(winograd, "applies", lambda x, kernel: False)


@pytest.mark.usefixtures("convolves_as_accelerators_do")
def test_a_training_step_sends_its_gradients_and_its_loss_once(small_config, mesh4):
    each, parameters = compiled_step(small_config, mesh4)
    assert {one.kind for one in each} == {"all-reduce"}
    assert communication.totals(each)["payload_bytes"] == 4 * (parameters + 1)
    assert sum(one.arrays for one in each) <= 2 * small_config.model.depth + 4 + 1


@pytest.mark.usefixtures("convolves_as_accelerators_do")
def test_each_of_several_steps_in_a_call_sends_as_much_as_a_single_one(small_config, mesh4):
    each, parameters = compiled_step(small_config, mesh4, steps=5, resident_images=32)
    assert all(one.in_loop for one in each)
    assert sum(one.payload_bytes for one in each) == 4 * (parameters + 1)


def test_sharded_search_gathers_what_each_device_found_and_ranks_are_two_sums(mesh4):
    rows, whole = sharding.by_rows(mesh4), sharding.replicated(mesh4)

    def array(shape, where, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    queries, codes, norms = array((6, 16), whole), array((400, 16), rows), array((400,), rows)
    program = device_codes._search_block.lower(queries, codes, norms, k=10, mesh=mesh4)
    each = communication.collectives(program.compile().as_text())
    assert each == [Collective("all-gather", 6 * 4 * 10 * 4, 1, 4, False)] * 2  # values, positions
    items, order = array((6, 7), whole, jnp.int32), array((400,), whole, jnp.int32)
    program = full_ranking._ranks_block.lower(queries, items, order, codes, norms, mesh=mesh4)
    each = communication.collectives(program.compile().as_text())
    assert each == [Collective("all-reduce", 6 * 7 * 4, 1, 4, False)] * 2
