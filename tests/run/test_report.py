from types import SimpleNamespace

from air_jax.run import report


def test_the_parts_of_a_stages_time_add_up_to_it():
    whole = {"train": 10.0, "retrieve": 3.0, "feedback": 7.0}
    found = {
        "train": {"seconds": 6.0, "compile_seconds": 1.5, "probe_seconds": 0.0},
        "encode": None,
        "retrieve": {"retrieval": {"seconds": 2.5}},
        "feedback": {"svc": {"rounds": [{"seconds": 1.0}, {"seconds": 4.0}]}},
    }
    times = report._times(SimpleNamespace(seconds=whole.get), found)
    assert times == {
        "train": {"steps": 6.0, "compiling": 1.5, "else": 2.5},
        "retrieve": {"ranking": 2.5, "else": 0.5},
        "feedback": {"svc": 5.0, "else": 2.0},
    }
