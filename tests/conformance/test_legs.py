"""Which leg is off. Without a GPU: one adapter stands for two devices, and a subject is told that it is on another."""

from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.diagnosis import legs
from rlhf_conformance.diagnosis.evidence import Evidence, drawn, observe
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.judging.subject import Subject


class TwoDevices(Reference):
    """Doubles the value loss on the devices in `wrong`; on those in `absent` it raises."""

    wrong: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    here = "device"

    def value_loss(self, *arguments):
        if self.here in self.absent:
            raise RuntimeError("no such kernel")
        return super().value_loss(*arguments) * (2 if self.here in self.wrong else 1)


def said(store, wrong=(), absent=()):
    adapter = TwoDevices()
    adapter.wrong, adapter.absent = wrong, absent
    check = checks()["value-loss.half"]
    subject = Subject.make(adapter, device="cpu", dtype="float32", store=store)
    (case,) = drawn(check, subject, 1, seed=0)
    evidence = Evidence(check, subject, observe(check, subject, case))
    adapter.here, subject.device = "cpu", "cuda"
    return [(found.name, found.sentence) for found in legs.diagnoses(evidence)]


def test_only_the_device_is_off(store):
    assert said(store, wrong=("device",)) == [("device", "on the CPU the same call is right: only cuda is off")]


def test_both_are_off(store):
    ((name, sentence),) = said(store, wrong=("device", "cpu"))
    assert name == "both"
    assert "no right answer either" in sentence


def test_nothing_is_claimed_where_the_trainer_does_not_run_on_the_cpu(store):
    assert said(store, wrong=("device",), absent=("cpu",)) == []
