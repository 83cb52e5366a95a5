"""Losses on what is held out: they change no bit of a training, and tell learning from learning by heart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train import SCHEDULE, Line, Points
from torch import Tensor, nn
from torch.utils.data import Dataset

from cftools.condition import Condition
from cftools.train.loop import train
from cftools.train.people import Portrait
from cftools.train.validation import ITEMS, split

WATCHED = replace(SCHEDULE, validate_every=25)


class Other(Line):
    """The same task, on points that lie elsewhere; remembers which."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift, self.asked = shift, list[int]()

    def dataset(self) -> Dataset[dict[str, Tensor]]:
        asked, shift = self.asked, self.shift

        class Elsewhere(Points):
            def __getitem__(self, index: int) -> dict[str, Tensor]:
                asked.append(index)
                return {"x": super().__getitem__(index)["x"], "y": super().__getitem__(index)["y"] + shift}

        return Elsewhere()


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "validation.jsonl").open()]


def test_a_validation_changes_no_bit_and_sees_the_same_items_each_time(tmp_path: Path) -> None:
    held_out = Other()
    train(Line(), SCHEDULE, tmp_path / "alone")
    network, _ = train(Line(), WATCHED, tmp_path / "watched", held_out=held_out)
    alone, watched = (load_file(tmp_path / out / "state.safetensors") for out in ("alone", "watched"))
    assert all(torch.equal(alone[name], watched[name]) for name in alone)
    assert held_out.asked == list(ITEMS), "made once"
    found = lines(tmp_path / "watched")
    assert [line["step"] for line in found] == [25, 50, 60]
    assert found[-1]["loss"] < found[0]["loss"] and found[0].keys() == {"step", "loss", "absolute"}
    assert network.training and not any(one.requires_grad for one in network.parameters())


def test_what_is_learned_by_heart_shows(tmp_path: Path) -> None:
    train(Line(), WATCHED, tmp_path / "same", held_out=Other())
    train(Line(), WATCHED, tmp_path / "other", held_out=Other(shift=10.0))
    assert lines(tmp_path / "other")[-1]["absolute"] > lines(tmp_path / "same")[-1]["absolute"] + 5


def test_the_losses_are_those_of_the_averaged_network_as_it_is_used(tmp_path: Path) -> None:
    """Without dropout: the mean over the items, worked out here again."""
    network, _ = train(Line(), WATCHED, tmp_path, held_out=Other())
    network.eval()
    with torch.autocast("cpu", torch.bfloat16):
        own = [float(Line().losses(network, Points()[number])["loss"]) for number in ITEMS]
    assert lines(tmp_path)[-1]["loss"] == pytest.approx(sum(own) / len(own), rel=1e-6)


@pytest.mark.parametrize(("count", "held_out"), [(0, []), (1, []), (2, [0]), (9, [0]), (10, [0]), (25, [0, 10, 20])])
def test_every_tenth_is_held_out(count: int, held_out: list[int]) -> None:
    seen, unseen = split(list(range(count)))
    assert unseen == held_out and sorted(seen + unseen) == list(range(count))


def test_all_scans_of_a_person_are_on_one_side() -> None:
    people = [Portrait(torch.zeros(1), Condition(), f"sub-{number // 2:02d}") for number in range(24)]
    seen, unseen = split(people)
    assert unseen == [*people[:2], *people[20:22]] and seen == [*people[2:20], *people[22:]]
    assert split(people[:2]) == (people[:2], []), "one person is not held out of themselves"
    nobody = [Portrait(torch.zeros(1), Condition()) for _ in range(3)]
    assert split(nobody) == (nobody[1:], nobody[:1])


def test_pictures_are_of_what_is_held_out(tmp_path: Path) -> None:
    class Shown(Line):
        def preview(self, network: nn.Module, item: dict[str, Tensor]) -> Tensor:
            return item["x"]

    pictures: list[Tensor] = []
    watched = replace(WATCHED, steps=20, preview_every=10)
    train(
        Shown(), watched, tmp_path / "watched", preview=lambda step, images: pictures.append(images), held_out=Other()
    )
    assert len(pictures) == 2 and all(torch.equal(one, Points()[ITEMS[0]]["x"]) for one in pictures)
    pictures.clear()
    train(Shown(), replace(watched, validate_every=0), tmp_path / "alone", preview=lambda s, i: pictures.append(i))
    assert torch.equal(pictures[0], Points()[9]["x"]), "else of the step's own"
