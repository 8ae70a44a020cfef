"""The trainings of the papers' tables: networks, forms, branches and sub-models as each table has
them, with its recipe where the networks of one table differ in that.

`studies/tables` holds a study for each table, which names the points it needs. A study's recipe is
that of the first networks below; others replace keys of it.
"""

from planter import Architecture, Candidate, form_of

WRN_KFLO = {"batch": 64, "nesterov": True, "weight_decay": 5e-4, "epochs": 200, "schedule": "step",
            "step": 60.0, "gamma": 0.1}  # fmt: skip
"""Deep Mutual Learning's, which KFLO names; it does not state the decay."""
KFLO_NETWORKS = {
    "cifar_quick": ("cifar_quick", {}, {}),
    "vgg16": ("vgg16", {"head": "hidden"}, {"epochs": 400}),
    "wrn-16-8": ("wrn", {"depth": 16, "widen": 8}, WRN_KFLO),
    "wrn-28-2": ("wrn", {"depth": 28, "widen": 2}, WRN_KFLO),
    "wrn-28-5": ("wrn", {"depth": 28, "widen": 5}, WRN_KFLO),
    "wrn-28-10": ("wrn", {"depth": 28, "widen": 10}, WRN_KFLO),
}
FORMS = [
    "plain", "ema", "acnet", "do-conv", "kflo:2x1", "kflo:2x2", "kflo:2x3", "kflo:2x4", "kflo:3x2",
]  # fmt: skip
EMA_DECAY = 0.999
"""Of a step; KFLO gives none."""

WRN_DKS = {"batch": 128, "weight_decay": 5e-4, "schedule": "multistep", "gamma": 0.2,
           "milestones": [60.0, 120.0, 160.0], "epochs": 200}  # fmt: skip
DENSENET_DKS = {"nesterov": True, "epochs": 300, "schedule": "multistep",
                "milestones": [150.0, 225.0]}  # fmt: skip
GROUPS = ("group1", "group2")
DKS_NETWORKS = {
    "resnet-32": ("resnet", {"depth": 32}, GROUPS, {}),
    "resnet-110": ("resnet", {"depth": 110}, GROUPS, {}),
    "densenet-40-12": ("densenet", {"depth": 40}, ("block1", "block2"), DENSENET_DKS),
    "densenet-100-12": ("densenet", {"depth": 100}, ("block1", "block2"), DENSENET_DKS),
    "wrn-28-4": ("wrn", {"depth": 28, "widen": 4}, GROUPS, WRN_DKS),
    "wrn-28-10": ("wrn", {"depth": 28, "widen": 10}, GROUPS, WRN_DKS),
    "wrn-28-10-dropout": ("wrn", {"depth": 28, "widen": 10, "dropout": 0.3}, GROUPS, WRN_DKS),
    "mobilenet": ("mobilenet", {}, ("sep5", "sep11"), {}),
    "resnet-14": ("resnet", {"depth": 14}, GROUPS, {}),
    "wrn-16-2": ("wrn", {"depth": 16, "widen": 2}, GROUPS, {}),
}
BRANCHES = ["none", "blocks", "narrow", "shallow", "conv", "fc"]
STRATEGIES = ["none", "top_down", "bottom_up", "bidirectional"]

HU_NETWORKS = ["toy", "resnet18"]


def kflo(trial, *, image, classes):
    """A network of KFLO's tables in a training form of its kernels."""
    builder, options, recipe = KFLO_NETWORKS[
        trial.suggest_categorical("network", list(KFLO_NETWORKS))
    ]
    form = trial.suggest_categorical("form", FORMS)
    if form == "ema":
        form, recipe = "plain", {**recipe, "ema": EMA_DECAY}
    network = Architecture(builder, {}, {**options, "image": image, "classes": classes})
    return Candidate(network, kernels=form_of(form), recipe=recipe)


def cnsn(trial, *, image, classes):
    """VGG16 with CNSN's two sub-models, all in one training, or one of the three networks alone.

    `width` is that of the first convolution, 64 in the paper; all others follow.
    """
    width = trial.suggest_categorical("width", [64, 48, 32, 16, 8])
    base = Architecture("vgg16", {}, {"image": image, "classes": classes})
    times = {1: [1, 2], 2: [3, 4], 4: [5, 6, 7], 8: [8, 9, 10, 11, 12, 13]}
    widths = {f"conv{n}": width * factor for factor, numbers in times.items() for n in numbers}
    trained = trial.suggest_categorical("trained", ["joint", "base", "cut2", "cut7"])
    if trained == "base":
        return Candidate(Architecture("vgg16", widths, base.options))
    if trained != "joint":
        network = Architecture("vgg16", widths, base.options, {trained: {}})
        return Candidate(network, weights={"base": 0.0})
    network = Architecture("vgg16", widths, base.options, {"cut2": {}, "cut7": {}})
    norms = trial.suggest_categorical("norms", ["shared", "switch_stats", "switch_all"])
    weight = trial.suggest_categorical("base_weight", [1.0, 2.0, 4.0])
    return Candidate(network, weights={"base": weight}, norms=norms)


def dks(trial, *, image, classes):
    """A network of DKS's tables with its auxiliary classifiers, with or without synergy."""
    return _dks(trial, image, classes)


def dks_guided(trial, *, image, classes):
    """The same, which the study's teacher may guide."""
    guided = trial.suggest_categorical("guided", [False, True])
    return _dks(trial, image, classes, kd_weight={"base": 1.0} if guided else 0.0)


def _dks(trial, image, classes, **settings):
    builder, options, places, recipe = DKS_NETWORKS[
        trial.suggest_categorical("network", list(DKS_NETWORKS))
    ]
    kind = trial.suggest_categorical("branches", BRANCHES)
    pipelines, synergy = {}, "none"
    if kind != "none":
        for number, place in enumerate(places, 1):
            pipelines[f"branch{number}"] = {"after": place, "branch": kind}
        synergy = trial.suggest_categorical("synergy", STRATEGIES)
    options = {**options, "image": image, "classes": classes}
    return Candidate(
        Architecture(builder, {}, options, pipelines),
        synergy=None if synergy == "none" else synergy,
        recipe=recipe,
        **settings,
    )


def hu(trial, *, image, classes):
    """A classifier alone, behind an image head as one network, or both in one training."""
    builder = trial.suggest_categorical("network", HU_NETWORKS)
    trained = trial.suggest_categorical("trained", ["alone", "one pipeline", "two pipelines"])
    options = {"image": image, "classes": classes}
    if trained == "alone":
        return Candidate(Architecture(builder, {}, options))
    head = trial.suggest_categorical("head", ["fsrcnn", "vdsr"])
    network = Architecture(builder, {}, options, {"head": {"head": head}})
    weights = {"base": 0.0} if trained == "one pipeline" else {}
    return Candidate(network, weights=weights, norms="shared")
