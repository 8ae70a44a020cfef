"""All pipelines that can share a residual trunk: sub-models, branches, an image head; trained with
KFLO or plain kernels, with or without a teacher.

Copy this file, edit it, and name it in a study as `sample: {space: my_space.py:space}`.
"""

from planter import Architecture, Candidate, KernelFilter, cost, cuts, takes_stride

DEPTHS = [8, 14]
WIDTHS = [4, 8, 16]
# Add "vdsr" if 744,192 multiply-adds per pixel are affordable.
HEADS = ["none", "fsrcnn"]


def affordable_heads(image, classes, teacher_macs):
    """The image heads that alone cost less than the teacher."""
    smallest = {"stem": 1, "group1": 1, "group2": 1, "group3": 1}
    options = {"depth": 8, "image": image, "classes": classes}
    heads = {name: {"head": name} for name in HEADS if name != "none"}
    costs = cost(Architecture("resnet", smallest, options, heads)).pipelines
    return ["none"] + [
        name for name in heads if teacher_macs is None or costs[name].macs < teacher_macs
    ]


def space(trial, *, image, classes, teacher_macs=None):
    """A resnet with zero to two sub-models, zero to two branches and perhaps an image head."""
    depth = trial.suggest_categorical("depth", DEPTHS)
    width = trial.suggest_categorical("width", WIDTHS)
    widths = {"stem": width, "group1": width, "group2": 2 * width, "group3": 4 * width}
    options = {"depth": depth, "image": image, "classes": classes}
    network = Architecture("resnet", widths, options)
    pipelines, weights = {}, {}

    # Conditional parameters have their own names, so a sampler never confuses two of them.
    known = cuts(network)
    for i in range(1, trial.suggest_int("cuts", 0, 2) + 1):
        cut = known[trial.suggest_categorical(f"cut{i}_of_depth{depth}", list(known))]
        factor = trial.suggest_categorical(f"cut{i}_stride", ["natural", "half", "double"])
        stride = {"natural": cut.stride, "half": cut.stride // 2, "double": 2 * cut.stride}[factor]
        if stride < 1 or not takes_stride(network, cut.before, stride):
            stride = cut.stride
        kernel = stride + 2 * trial.suggest_int(f"cut{i}_overlap", 0, 2)
        if stride == 1 and kernel % 2 == 0:
            kernel += 1
        spec = {"before": cut.before, "stride": stride, "kernel": kernel}
        if spec in pipelines.values():
            continue  # the same sub-model twice
        pipelines[f"sub{i}"] = spec
        weights[f"sub{i}"] = trial.suggest_float(f"cut{i}_weight", 0.3, 2.0, log=True)

    synergy = None
    places = trial.suggest_categorical("branches", ["none", "group1", "group2", "group1+group2"])
    if places != "none":
        kind = trial.suggest_categorical("branch_kind", ["blocks", "narrow", "shallow"])
        weight = trial.suggest_float("branch_weight", 0.3, 2.0, log=True)
        for place in places.split("+"):
            pipelines[f"branch-{place}"] = {"after": place, "branch": kind}
            weights[f"branch-{place}"] = weight
        strategies = ["none", "top_down", "bottom_up", "bidirectional"]
        chosen = trial.suggest_categorical("synergy", strategies)
        synergy = chosen if chosen != "none" else None

    head = trial.suggest_categorical("head", affordable_heads(image, classes, teacher_macs))
    if head != "none":
        pipelines[f"head-{head}"] = {"head": head}
        weights[f"head-{head}"] = trial.suggest_float("head_weight", 0.3, 2.0, log=True)

    norms = "switch_stats"
    if any("after" not in spec for spec in pipelines.values()):
        norms = trial.suggest_categorical("norms", ["switch_stats", "switch_all"])

    # The teacher guides no pipeline, the base, the others, or all.
    kd_weight = {}
    several = ["none", "base", "others", "all"]
    name, choices = ("guided", several) if pipelines else ("guided_alone", ["none", "base"])
    guided = trial.suggest_categorical(name, choices)
    if guided != "none":
        weight = trial.suggest_float("kd_weight", 0.3, 4.0, log=True)
        names = {"base": ["base"], "others": pipelines, "all": ["base", *pipelines]}[guided]
        kd_weight = dict.fromkeys(names, weight)

    kernels = None
    if trial.suggest_categorical("kflo", [False, True]):
        kernels = KernelFilter(rho=trial.suggest_categorical("kflo_rho", [1, 2, 4]))
    return Candidate(
        Architecture("resnet", widths, options, pipelines),
        weights=weights,
        kernels=kernels,
        kd_weight=kd_weight,
        temperature=trial.suggest_float("temperature", 1.0, 6.0) if kd_weight else 1.0,
        synergy=synergy,
        norms=norms,
    )
