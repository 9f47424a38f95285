"""Device plugins: what an engine is shown. No device of these kinds is here; what was found is written out."""

from __future__ import annotations

from launcher.devices.base import Resource
from launcher.devices.cpu import Cpu
from launcher.devices.gpu import Gpu
from launcher.devices.nvidia import allowed
from launcher.devices.rbln import Rbln

GPUS = tuple(Resource(number, "gpu", {"uuid": f"GPU-{number}{number}aa"}) for number in range(4))


def test_a_processor_is_always_there() -> None:
    (processor,) = Cpu().detect()

    assert processor.attributes["cores"] >= 1
    assert processor.attributes["memory_bytes"] > 0


def test_gpus_are_named_by_uuid_where_they_were_found() -> None:
    assert Gpu().visible_env((1, 2), GPUS)["CUDA_VISIBLE_DEVICES"] == "GPU-11aa,GPU-22aa"
    assert Gpu().visible_env((1, 2), ())["CUDA_VISIBLE_DEVICES"] == "1,2"


def test_gpus_that_a_scheduler_did_not_give_us_are_not_ours() -> None:
    assert [gpu.id for gpu in allowed(GPUS, None)] == [0, 1, 2, 3]
    assert [gpu.id for gpu in allowed(GPUS, "2, 3")] == [2, 3]
    assert [gpu.id for gpu in allowed(GPUS, "GPU-11")] == [1]
    assert [gpu.id for gpu in allowed(GPUS, "")] == []


def test_npus_are_counted_over_the_nodes_that_are_present() -> None:
    present = (Resource(1, "rbln"), Resource(2, "rbln"))

    assert Rbln().visible_env((1, 2), present) == {"RBLN_VISIBLE_DEVICES": "0,1"}
    assert Rbln().visible_env((0, 1), ()) == {"RBLN_VISIBLE_DEVICES": "0,1"}
    assert Rbln().nodes((1, 2)) == ("/dev/rbln1", "/dev/rbln2", "/dev/rsd0")
