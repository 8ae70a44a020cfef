"""Malformed study files: each is one message with the place, exit code 2, and no run folder."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from test_driver import SPACE

from planter import cli

# Every section of a sound study on a line of its own, so that a mistake's line can be counted.
SOUND: dict[str, str] = {
    "name": "small",
    "seed": "0",
    "data": "{name: digits, subset: 240, validation: 0.25}",
    "teacher": "{builder: convnet, widths: 8}",
    "baselines": "[{widths: 4}]",
    "recipe": "{epochs: 2, batch: 30, optimizer: adam, lr: 0.01, schedule: onecycle}",
    "objectives": "{macs_reference: 1000000.0}",
    "plant": "{start: 3, channels: 2, rounds: 2, layers: [conv1, conv5]}",
    "sample": "{space: 'space.py:space', trials: 4}",
    "resources": "{workers: 0}",
    "keep": "front",
    "storage": "null",
}


COMMAND = typer.main.get_command(cli.app)  # made once: a call of the app makes it anew


def study_text(**changed: str) -> str:
    return "".join(f"{key}: {value}\n" for key, value in {**SOUND, **changed}.items())


# ---- files that are no YAML mapping: the bytes, and the line where that is seen

_BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
_MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)
)
FILES: list[tuple[str, bytes, int | None]] = [
    ("empty", b"", None),
    ("only blanks", b"  \n\n", None),
    ("only a comment", b"# later\n", None),
    ("only a document mark", b"---\n", None),
    ("null", b"null\n", None),
    ("a list", b"- name: small\n", None),
    ("a text", b"just text\n", None),
    ("a number", b"42\n", None),
    ("a date", b"2024-01-01\n", None),
    ("a set", b"!!set {name, data}\n", None),
    ("JSON list", b'[{"name": "small"}]\n', None),
    ("CSV", b"name,small\nseed,3\n", None),
    ("INI", b"[study]\nname = small\n", 2),
    ("Python", b"name = 'small'\nseed = 3\n", None),
    ("two documents", b"name: small\n---\nname: other\n", 2),
    ("key twice", b"name: small\nname: other\n", 2),
    ("inner key twice", b"name: small\nrecipe:\n  lr: 1\n  epochs: 3\n  lr: 2\n", 5),
    ("tab as indent", b"name: small\nrecipe:\n\tepochs: 3\n", 3),
    ("open brace", b"name: small\nrecipe: {epochs: 3\n", 3),
    ("open bracket", b"name: small\nbaselines: [{widths: 3}\n", 3),
    ("open quote", b"name: 'small\n", 2),
    ("open double quote", b'seed: 3\nname: "small\n', 3),
    ("closed before opened", b"name: small\nrecipe: }\n", 2),
    ("comma missing", b"name: small\nrecipe: {epochs: 3 lr: 1}\n", 2),
    ("two colons", b"name: small\nrecipe: epochs: 3\n", 2),
    ("indent falls between", b"name: small\nrecipe:\n    lr: 1\n  epochs: 3\n", 4),
    ("indent rises", b"name: small\n  seed: 3\n", 2),
    ("item beside keys", b"name: small\n- seed\n", 2),
    ("unknown escape", b'name: "a\\q"\n', 1),
    ("reserved @", b"name: @small\n", 1),
    ("reserved `", b"name: `small`\n", 1),
    ("directive", b"%YAML 9.0\n---\nname: small\n", 1),
    ("merge conflict", b"<<<<<<< HEAD\nname: small\n=======\n", 2),
    ("unknown alias", b"name: *nothing\n", 1),
    ("list as key", b"name: small\n[a, b]: 3\n", 2),
    ("mapping as key", b"name: small\n{a: b}: 3\n", 2),
    ("merge of a number", b"name: small\nrecipe: {<<: 3}\n", 2),
    ("date that is none", b"name: small\nseed: 2024-13-45\n", 2),
    ("int of a text", b"name: small\nseed: !!int abc\n", 2),
    ("float of a text", b"name: small\nrecipe: {lr: !!float abc}\n", 2),
    ("binary of a text", b"name: small\nkeep: !!binary x\n", 2),
    ("too many digits", b"name: small\nseed: " + b"9" * 5000 + b"\n", 2),
    ("own tag", b"name: small\nrecipe: !recipe {lr: 1}\n", 2),
    ("Python tuple", b"name: small\nbaselines: !!python/tuple []\n", 2),
    ("Python name", b"name: small\nkeep: !!python/name:os.system\n", 2),
    ("Python module", b"name: small\nkeep: !!python/module:antigravity\n", 2),
    ("NUL", b"name: small\nkeep: a\0b\n", 2),
    ("control character", b"name: small\n\nkeep: a\x07b\n", 3),
    ("escape to the terminal", b"name: small\nkeep: \x1b[2J\n", 2),
    ("Latin-1", b"name: small\nkeep: caf\xe9\n", 2),
    ("UTF-16", "name: small\n".encode("utf-16"), 1),
    ("UTF-16 without a mark", "name: small\n".encode("utf-16-le"), 1),
    ("UTF-32", "name: small\n".encode("utf-32"), 1),
    ("gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff", 1),
    ("PNG", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 1),
    ("ZIP", b"PK\x03\x04\x14\0\0\0\x08\0", 1),
    ("all bytes", bytes(range(256)), 2),
    ("deep list", b"name: small\ndata: " + b"[" * 5000 + b"]" * 5000 + b"\n", None),
    ("deep mapping", b"name: small\ndata: " + b"{a: " * 5000 + b"}" * 5000 + b"\n", None),
    ("deep blocks", b"".join(b" " * i + b"a:\n" for i in range(1200)), None),
    ("deep items", b"- " * 3000 + b"a\n", None),
    ("inside itself", b"name: small\ndata: &a {name: *a}\n", None),
    ("merged into itself", b"name: small\ndata: &a {<<: *a}\n", None),
    ("alias bomb", _BOMB.encode(), None),
    ("merge bomb", _MERGE_BOMB.encode(), None),
]

# ---- values that the text alone shows to be wrong: section, its value, the place told

VALUES: list[tuple[str, str, str]] = [
    # keys
    ("recip", "{epochs: 3}", "recip"),
    ("Name", "small", "Name"),
    ("1", "2", "1"),
    ('"a\\nb"', "2", "a\\nb"),
    ('"\\e[2J"', "2", "\\x1b[2J"),
    ('"[red]x[/red]"', "2", "[red]x[/red]"),
    ("data", "{nam: digits}", "data.nam"),
    ("teacher", "{builder: convnet, width: 8}", "teacher.width"),
    ("teacher", "{builder: convnet, recipe: {lrr: 1}}", "teacher.recipe.lrr"),
    ("baselines", "[{widths: 4}, {widhts: 4}]", "baselines.1.widhts"),
    ("baselines", "[{widths: 4, kd: {weigth: 1}}]", "baselines.0.kd.weigth"),
    ("recipe", "{learning_rate: 1}", "recipe.learning_rate"),
    ("recipe", "{augment: {flpi: true}}", "recipe.augment.flpi"),
    ("objectives", "{bounds: {mac: 3}}", "objectives.bounds.mac"),
    ("plant", "{finetune: {epoch: 3}}", "plant.finetune.epoch"),
    ("plant", "{bounds: {latency: 3}}", "plant.bounds.latency"),
    ("sample", "{trials: 3}", "sample.space"),
    ("resources", "{cpus: 3}", "resources.cpus"),
    # types
    ("name", "12", "name"),
    ("name", "null", "name"),
    ("name", "[small]", "name"),
    ("name", "{a: b}", "name"),
    ("seed", "1.5", "seed"),
    ("seed", "'7'", "seed"),
    ("seed", "true", "seed"),
    ("seed", "null", "seed"),
    ("data", "digits", "data"),
    ("data", "null", "data"),
    ("data", "{name: 3}", "data.name"),
    ("data", "{root: [a]}", "data.root"),
    ("data", "{download: maybe}", "data.download"),
    ("data", "{resize: 8x8}", "data.resize"),
    ("data", "{subset: many}", "data.subset"),
    ("data", "{label_noise: some}", "data.label_noise"),
    ("data", "{validation: null}", "data.validation"),
    ("teacher", "convnet", "teacher"),
    ("teacher", "[convnet]", "teacher"),
    ("teacher", "{builder: 3}", "teacher.builder"),
    ("teacher", "{builder: convnet, widths: wide}", "teacher.widths"),
    ("teacher", "{builder: convnet, widths: 8.5}", "teacher.widths"),
    ("teacher", "{builder: convnet, widths: [8]}", "teacher.widths"),
    ("teacher", "{builder: convnet, widths: {conv1: wide}}", "teacher.widths.conv1"),
    ("teacher", "{builder: convnet, widths: {conv1: null}}", "teacher.widths.conv1"),
    ("teacher", "{builder: convnet, options: norm}", "teacher.options"),
    ("teacher", "{builder: convnet, recipe: fast}", "teacher.recipe"),
    ("teacher", "{model: 3}", "teacher.model"),
    ("baselines", "{widths: 4}", "baselines"),
    ("baselines", "4", "baselines"),
    ("baselines", "[4]", "baselines.0"),
    ("baselines", "[null]", "baselines.0"),
    ("baselines", "[{widths: 4, kd: true}]", "baselines.0.kd"),
    ("recipe", "[1]", "recipe"),
    ("recipe", "{epochs: many}", "recipe.epochs"),
    ("recipe", "{epochs: 2.0}", "recipe.epochs"),
    ("recipe", "{batch: '128'}", "recipe.batch"),
    ("recipe", "{lr: fast}", "recipe.lr"),
    ("recipe", "{lr: 1,5}", "recipe.5"),
    ("recipe", "{lr: 1_e-3}", "recipe.lr"),
    ("recipe", "{nesterov: 1}", "recipe.nesterov"),
    ("recipe", "{schedule: multistep, milestones: 3}", "recipe.milestones"),
    ("recipe", "{schedule: multistep, milestones: [a]}", "recipe.milestones.0"),
    ("recipe", "{augment: true}", "recipe.augment"),
    ("recipe", "{augment: {flip: 1}}", "recipe.augment.flip"),
    ("objectives", "accuracy", "objectives"),
    ("objectives", "{family: 2}", "objectives.family"),
    ("objectives", "{bounds: 100}", "objectives.bounds"),
    ("objectives", "{bounds: {macs: 1.5}}", "objectives.bounds.macs"),
    ("plant", "{bounds: {latency_ms: fast}}", "plant.bounds.latency_ms"),
    ("plant", "true", "plant"),
    ("plant", "{start: small}", "plant.start"),
    ("plant", "{start: null}", "plant.start"),
    ("plant", "{layers: conv1}", "plant.layers"),
    ("plant", "{layers: [1]}", "plant.layers.0"),
    ("plant", "{rounds: 1.5}", "plant.rounds"),
    ("plant", "{kernels: 4}", "plant.kernels"),
    ("plant", "{recipe: null}", "plant.recipe"),
    ("sample", "convnet_cuts", "sample"),
    ("sample", "{space: 3}", "sample.space"),
    ("sample", "{space: convnet_cuts, trials: all}", "sample.trials"),
    ("resources", "2", "resources"),
    ("resources", "{workers: all}", "resources.workers"),
    ("resources", "{gpu: true}", "resources.gpu"),
    ("storage", "3", "storage"),
    ("storage", "{url: sqlite}", "storage"),
    # ranges
    ("seed", "-1", "seed"),
    ("seed", "4294967296", "seed"),
    ("seed", "1" + "0" * 400, "seed"),
    ("data", "{resize: 0}", "data.resize"),
    ("data", "{resize: -8}", "data.resize"),
    ("data", "{subset: 0}", "data.subset"),
    ("data", "{subset: -0.5}", "data.subset"),
    ("data", "{validation: 0}", "data.validation"),
    ("data", "{label_noise: 1.5}", "data.label_noise"),
    ("data", "{label_noise: -0.1}", "data.label_noise"),
    ("recipe", "{epochs: 0}", "recipe.epochs"),
    ("recipe", "{epochs: -3}", "recipe.epochs"),
    ("recipe", "{batch: 0}", "recipe.batch"),
    ("recipe", "{lr: 0}", "recipe.lr"),
    ("recipe", "{lr: -0.1}", "recipe.lr"),
    ("recipe", "{lr: .nan}", "recipe.lr"),
    ("recipe", "{lr: .inf}", "recipe.lr"),
    ("recipe", "{lr: 1e400}", "recipe.lr"),
    ("recipe", "{lr: 1" + "0" * 400 + "}", "recipe.lr"),
    ("recipe", "{momentum: 1}", "recipe.momentum"),
    ("recipe", "{weight_decay: -1e-4}", "recipe.weight_decay"),
    ("recipe", "{warmup: -1}", "recipe.warmup"),
    ("recipe", "{gamma: 1.5}", "recipe.gamma"),
    ("recipe", "{ema: 1}", "recipe.ema"),
    ("recipe", "{step: 0}", "recipe.step"),
    ("recipe", "{schedule: multistep, milestones: [.nan]}", "recipe.milestones.0"),
    ("recipe", "{augment: {crop: -1}}", "recipe.augment.crop"),
    ("recipe", "{augment: {crop: 1, views: 1}}", "recipe.augment.views"),
    ("recipe", "{augment: {mixup: -1}}", "recipe.augment.mixup"),
    ("recipe", "{augment: {cutmix: .nan}}", "recipe.augment.cutmix"),
    ("recipe", "{augment: {mixup: 1, views: 2}}", "recipe.augment"),
    ("recipe", "{augment: {erasing: 1.5}}", "recipe.augment.erasing"),
    ("recipe", "{augment: {erasing: {scale: [0.1, .inf]}}}", "recipe.augment.erasing.scale.1"),
    ("recipe", "{augment: {resized_crop: {scal: [0.1, 1]}}}", "recipe.augment.resized_crop.scal"),
    ("recipe", "{augment: {resized_crop: 7}}", "recipe.augment.resized_crop"),
    ("recipe", "{augment: {color_jitter: {hue: 0.7}}}", "recipe.augment.color_jitter.hue"),
    ("recipe", "{augment: {randaugment: {magnitude: 40}}}", "recipe.augment.randaugment.magnitude"),
    ("recipe", "{augment: {trivial: 2}}", "recipe.augment.trivial"),
    ("objectives", "{macs_reference: 0}", "objectives.macs_reference"),
    ("objectives", "{macs_reference: -.inf}", "objectives.macs_reference"),
    ("objectives", "{bounds: {params: 0}}", "objectives.bounds.params"),
    ("sample", "{space: planting, multiple: 0}", "sample.multiple"),
    ("objectives", "{bounds: {latency_ms: 0}}", "objectives.bounds.latency_ms"),
    ("plant", "{channels: 0}", "plant.channels"),
    ("plant", "{channels: -4}", "plant.channels"),
    ("plant", "{channels: .nan}", "plant.channels"),
    ("plant", "{multiple: 0}", "plant.multiple"),
    ("plant", "{rounds: -1}", "plant.rounds"),
    ("plant", "{per_round: 0}", "plant.per_round"),
    ("plant", "{patience: -1}", "plant.patience"),
    ("plant", "{temperature: 0}", "plant.temperature"),
    ("plant", "{memory_gb: -1}", "plant.memory_gb"),
    ("plant", "{recipe: {lr: 0}}", "plant.recipe.lr"),
    ("plant", "{final: {epochs: 0}}", "plant.final.epochs"),
    ("baselines", "[{kd: {temperature: 0}}]", "baselines.0.kd.temperature"),
    ("sample", "{space: convnet_cuts, trials: -1}", "sample.trials"),
    ("resources", "{workers: -1}", "resources.workers"),
    ("resources", "{cpu: 0}", "resources.cpu"),
    ("resources", "{workers: 0, cpu: 1000000000}", "resources.cpu"),
    ("resources", "{gpu: -0.5}", "resources.gpu"),
    ("resources", "{max_failures: -1}", "resources.max_failures"),
    # words
    ("recipe", "{optimizer: sdg}", "recipe.optimizer"),
    ("recipe", "{optimizer: SGD}", "recipe.optimizer"),
    ("recipe", "{schedule: cosin}", "recipe.schedule"),
    ("plant", "{filters: ones}", "plant.filters"),
    ("plant", "{outgoing: ones}", "plant.outgoing"),
    ("plant", "{accept: accuracy}", "plant.accept"),
    ("sample", "{space: convnet_cuts, sampler: gp}", "sample.sampler"),
    ("keep", "some", "keep"),
    ("keep", "':bomb:'", "keep"),
    # settings that contradict each other
    ("recipe", "{schedule: multistep}", "recipe"),
    ("recipe", "{schedule: step}", "recipe"),
    ("recipe", "{epochs: 3, warmup: 4}", "recipe"),
    ("recipe", "{nesterov: true, optimizer: adam}", "recipe"),
    ("recipe", "{nesterov: true, momentum: 0}", "recipe"),
    ("recipe", "{augment: {views: 3}}", "recipe.augment"),
    ("plant", "{widths: 3}", "plant"),
    ("plant", "{channels: 1.5}", "plant"),
    ("plant", "{kd_weight: 0}", "plant"),
    ("plant", "{filters: zero}", "plant"),
    ("plant", "{filters: gradient, outgoing: random}", "plant"),
    ("plant", "{recipe: {ema: 0.9}}", "plant"),
    ("baselines", "[{kd: {weight: 0, ce_weight: 0}}]", "baselines.0.kd"),
    # names and paths
    ("name", "../small", "name"),
    ("name", "a/b", "name"),
    ("name", "a..b", "name"),
    ("name", "/small", "name"),
    ("name", "'a\\b'", "name"),
    ("name", "''", "name"),
    ("name", "'.'", "name"),
    ("name", '"a\\nb"', "name"),
    ("name", '"a\\0b"', "name"),
    ("name", '"\\ud800"', "name"),
    ("name", "x" * 101, "name"),
    ("baselines", "[{widths: 4, name: ../x}]", "baselines.0.name"),
    ("data", '{name: folder, root: "a\\0b"}', "data.root"),
    ("data", "{name: folder, root: ~no_such_user/x}", "data.root"),
    ("teacher", '{model: "a\\0b"}', "teacher.model"),
    ("sample", "{space: '~no_such_user/space.py:space'}", "sample.space"),
]

# ---- values that only data, networks or files show to be wrong

FACTS: list[tuple[str, str, str]] = [
    # no line: the key as YAML reads it is not the key as it is written
    ("null", "2", "None"),
    ("true", "2", "True"),
    ('"\\ud800"', "2", "study"),
    ('""', "2", "study"),
    ("data", "{name: imagenet}", "data"),
    ("data", "{name: 'no_such_module:make'}", "data"),
    ("data", "{name: 'math:no_such_name'}", "data"),
    ("data", "{name: 'math:pi'}", "data"),
    ("data", "{name: 'os:getcwd'}", "data"),
    ("data", "{name: 'sys:exit'}", "data"),
    ("data", "{name: ':'}", "data"),
    ("data", "{name: '..:x'}", "data"),
    ("data", "{name: mnist}", "data.root"),
    ("data", "{name: mnist, root: nowhere}", "data.root"),
    ("data", "{name: cifar10, root: space.py}", "data.root"),
    ("data", "{name: folder}", "data.root"),
    ("data", "{name: folder, root: nowhere}", "data.root"),
    ("data", "{name: folder, root: space.py}", "data.root"),
    ("data", "{name: folder, root: " + "x" * 5000 + "}", "data.root"),
    ("data", "{name: folder, root: one_class}", "data.root"),
    ("data", "{name: folder, root: no_images}", "data.root"),
    ("data", "{name: folder, root: broken_images}", "data.root"),
    ("data", "{subset: 5000}", "data"),
    ("data", "{subset: 1.5}", "data"),
    ("data", "{subset: 240, validation: 240}", "data"),
    ("data", "{validation: 1e-9}", "data"),
    ("data", "{resize: 1000000000}", "data"),
    ("teacher", "{widths: 8}", "teacher"),
    ("teacher", "{builder: nonet}", "teacher"),
    ("teacher", "{builder: Convnet}", "teacher"),
    ("teacher", "{builder: ''}", "teacher"),
    ("teacher", "{builder: 'torchvision:nonet'}", "teacher"),
    ("teacher", "{builder: 'torchvision:resnet18', widths: 8}", "teacher"),
    ("teacher", "{builder: 'no_such_module:build'}", "teacher"),
    ("teacher", "{builder: 'math:pi'}", "teacher"),
    ("teacher", "{builder: 'math:sqrt'}", "teacher"),
    ("teacher", "{builder: 'sys:exit'}", "teacher"),
    ("teacher", "{builder: vgg16}", "teacher"),
    ("teacher", "{builder: convnet, widths: 0}", "teacher"),
    ("teacher", "{builder: convnet, widths: -8}", "teacher"),
    ("teacher", "{builder: convnet, widths: 1000000}", "teacher"),
    ("teacher", "{builder: convnet, widths: 1000000000000000000000}", "teacher"),
    ("teacher", "{builder: convnet, widths: {conv9: 8}}", "teacher"),
    ("teacher", "{builder: convnet, options: {depth: 3}}", "teacher"),
    ("teacher", "{builder: convnet, options: {pool_after: 5}}", "teacher"),
    ("teacher", "{builder: convnet, options: {pool_after: 2024-01-01}}", "teacher"),
    ("teacher", "{model: nowhere}", "teacher.model"),
    ("teacher", "{model: space.py}", "teacher.model"),
    ("teacher", "{model: cut_short}", "teacher.model"),
    ("teacher", "{model: a_list}", "teacher.model"),
    ("teacher", "{model: no_architecture}", "teacher.model"),
    ("teacher", "{model: other_format}", "teacher.model"),
    ("teacher", "{model: nowhere, widths: 8}", "teacher"),
    ("teacher", "null", "baselines.0"),
    ("baselines", "[{widths: 4}, {widths: 4}]", "baselines.1"),
    ("baselines", "[{widths: 4}, {builder: nonet}]", "baselines.1"),
    ("baselines", "[{widths: {conv9: 4}}]", "baselines.0"),
    ("recipe", "{augment: {crop: 1000000}}", "recipe.augment.crop"),
    ("plant", "{start: {conv9: 3}}", "plant"),
    ("plant", "{start: 0}", "plant"),
    ("plant", "{start: 1000000}", "plant"),
    ("plant", "{start: 3, layers: [conv9]}", "plant.layers"),
    ("plant", "{start: 3, layers: []}", "plant.layers"),
    ("plant", "{start: 3, layers: [conv1, conv1]}", "plant.layers"),
    ("plant", "{start: 3, layers: [conv2], channels: 1000000000000}", "plant.layers"),
    ("plant", "{start: 3, layers: [conv2], multiple: 1000000000000}", "plant.layers"),
    ("plant", "{start: 3, layers: [conv1], kernels: nonsense}", "plant.kernels"),
    ("plant", "{start: 3, layers: [conv1], kernels: 'kflo:0x4'}", "plant.kernels"),
    ("plant", "{start: 3, layers: [conv1], kernels: acnet}", "plant.kernels"),
    ("plant", "{start: 3, layers: [conv1], bounds: {macs: 1}}", "plant.start"),
    ("plant", "{start: 3, layers: [conv1], bounds: {params: 1}}", "plant.start"),
    ("sample", "{space: no_such_space}", "sample.space"),
    ("sample", "{space: 'nowhere.py:space'}", "sample.space"),
    ("sample", "{space: 'study.yaml:space'}", "sample.space"),
    ("sample", "{space: 'space.py:'}", "sample.space"),
    ("sample", "{space: 'space.py:no_such_name'}", "sample.space"),
    ("sample", "{space: 'space.py:Architecture'}", "sample.space"),
    ("sample", "{space: 'spaces.py:raises'}", "sample.space"),
    ("sample", "{space: 'spaces.py:leaves'}", "sample.space"),
    ("sample", "{space: 'spaces.py:nothing'}", "sample.space"),
    ("sample", "{space: 'spaces.py:two_arguments'}", "sample.space"),
    ("sample", "{space: 'spaces.py:number'}", "sample.space"),
    ("sample", "{space: 'spaces.py:unknown_builder'}", "sample.space"),
    ("sample", "{space: 'spaces.py:unknown_key'}", "sample.space"),
    ("sample", "{space: 'spaces.py:enormous'}", "sample.space"),
    ("sample", "{space: 'no_python.py:space'}", "sample.space"),
    ("sample", "{space: 'leaves.py:space'}", "sample.space"),
    ("resources", "{workers: 0, gpu: 99}", "resources.gpu"),
    ("storage", "nodb", "storage"),
    ("storage", "'://'", "storage"),
    ("storage", "nodb://host/study", "storage"),
    ("storage", "sqlite:///no/such/folder/study.db", "storage"),
]
_SPACES = """
import sys
from planter import Architecture, Candidate

number = 3

def raises(trial):
    raise RuntimeError("not today")

def leaves(trial):
    sys.exit(0)

def nothing(trial):
    pass

def two_arguments(trial, other):
    pass

def unknown_builder(trial):
    return Candidate(Architecture("nonet", {}))

def unknown_key(trial):
    return Candidate(Architecture("convnet", {}), recipe={"epoch": 3})

def enormous(trial):
    return Candidate(Architecture("convnet", {"conv2": 10**12}))
"""


def make_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the files that the studies name."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "space.py").write_text(SPACE)
    (folder / "spaces.py").write_text(_SPACES)
    (folder / "no_python.py").write_text("def space(:\n")
    (folder / "leaves.py").write_text("raise SystemExit\n")
    for name in ("one_class/a", "no_images/a", "no_images/b", "broken_images/a", "broken_images/b"):
        (folder / name).mkdir(parents=True)
    (folder / "broken_images" / "a" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    models = {
        "cut_short": '{"format": 1',
        "a_list": "[]",
        "no_architecture": '{"format": 1, "pipeline": "base"}',
        "other_format": '{"format": 99}',
    }
    for name, text in models.items():
        (folder / name).mkdir()
        (folder / name / "arch.json").write_text(text)
        (folder / name / "weights.safetensors").touch()
    return folder


place = pytest.fixture(scope="module")(make_place)


Refused = Callable[..., str]


def make_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """Runs `planter check` and `planter search` on a study file; what they say is that there is one
    problem at this place, and they leave nothing behind."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(cli, "app", COMMAND)

    def run(study: str, told: str) -> str:
        before = sorted(place.iterdir())
        said = []
        for command in (["check", study], ["search", study, "--out", "run"]):
            monkeypatch.setattr(sys, "argv", ["planter", *command])
            with pytest.raises(SystemExit) as end:
                cli.main()
            captured = capsys.readouterr()
            assert end.value.code == 2, captured.err
            assert captured.out == ""
            said.append(captured.err)
        assert said[0] == said[1]
        first, second, *more, last = said[0].splitlines()
        assert re.fullmatch(r"planter: .*: 1 problem", first)
        assert second.startswith(f"  {told}: got "), said[0]
        assert not any(re.match(r"  \S+: got ", line) for line in more)
        assert last == "--debug shows where this was raised"
        assert "Traceback" not in said[0]
        assert sorted(place.iterdir()) == before
        return second

    return run


refused = pytest.fixture(make_refused)


def write(place: Path, content: bytes) -> str:
    (place / "study.yaml").write_bytes(content)
    return "study.yaml"


def test_there_are_a_hundred_of_them_and_no_two_alike() -> None:
    contents = [content for _, content, _ in FILES]
    contents += [study_text(**{key: value}).encode() for key, value, _ in VALUES + FACTS]
    assert len(set(contents)) == len(contents) >= 100


def test_what_they_were_made_from_is_sound(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["planter", "check", write(place, study_text().encode())])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "line"), [(c, n) for _, c, n in FILES], ids=[name for name, _, _ in FILES]
)
def test_a_file_that_is_no_mapping_is_told_with_its_line(
    place: Path, refused: Refused, content: bytes, line: int | None
) -> None:
    refused(write(place, content), "file" + (f" (line {line})" if line else ""))


def _short(value: str) -> str:
    return ascii(value)[1:-1][:50]


@pytest.mark.parametrize(("section", "value", "told"), VALUES, ids=_short)
def test_a_wrong_value_is_told_with_its_key_and_line(
    place: Path, refused: Refused, section: str, value: str, told: str
) -> None:
    line = [*SOUND, section].index(section) + 1
    # A key that is not there has no line.
    shown = told if (section, told) == ("sample", "sample.space") and "space" not in value else ""
    refused(write(place, study_text(**{section: value}).encode()), shown or f"{told} (line {line})")


@pytest.mark.parametrize(("section", "value", "told"), FACTS, ids=_short)
def test_a_value_that_fits_no_data_or_network_is_told_with_its_key(
    place: Path, refused: Refused, section: str, value: str, told: str
) -> None:
    few = {"plant": "null", "sample": "null", section: value}  # what else there is costs seconds
    refused(write(place, study_text(**few).encode()), told)
