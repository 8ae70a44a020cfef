"""Sub-models of the planting paper's network: widths, cuts, kernels and distillation in one space.

Copy this file, edit it, and name it in a study as `sample: {space: my_space.py:space}`.
"""

from planter import Architecture, Candidate, KernelFilter, cuts, takes_stride

WIDTHS = [8, 12, 16, 24, 32]


def space(trial, *, image, classes):
    """A convnet with zero to two step-down entries, trained with KFLO kernels and a teacher."""
    early = trial.suggest_categorical("width_early", WIDTHS)
    late = trial.suggest_categorical("width_late", WIDTHS)
    widths = {"conv1": early, "conv2": early, "conv3": late, "conv4": late, "conv5": late}
    widths["fc1"] = trial.suggest_categorical("fc1", [32, 64, 128])
    network = Architecture("convnet", widths, {"image": image, "classes": classes})

    # Parameters of each cut have their own names, so a sampler never confuses two cuts.
    pipelines, weights = {}, {}
    chosen = trial.suggest_categorical("cuts", ["none", "cut1", "cut2", "cut3", "cut1+cut3"])
    for name in chosen.split("+") if chosen != "none" else []:
        cut = cuts(network)[name]
        factor = trial.suggest_categorical(f"{name}_stride", ["natural", "half", "double"])
        stride = {"natural": cut.stride, "half": cut.stride // 2, "double": cut.stride * 2}[factor]
        if stride < 1 or not takes_stride(network, cut.before, stride):
            stride = cut.stride
        overlap = trial.suggest_int(f"{name}_overlap", 0, 2)
        kernel = stride + 2 * overlap
        pipelines[name] = {"before": cut.before, "stride": stride, "kernel": kernel}
        weights[name] = trial.suggest_float(f"{name}_weight", 0.3, 2.0, log=True)

    depth = trial.suggest_int("kflo_depth", 1, 2)
    kernels = None
    if depth > 1:
        kernels = KernelFilter(depth, rho=trial.suggest_categorical("kflo_rho", [1, 2, 4]))
    return Candidate(
        Architecture("convnet", widths, network.options, pipelines),
        weights=weights,
        kernels=kernels,
        kd_weight=trial.suggest_float("kd_weight", 0.0, 4.0),
        temperature=trial.suggest_float("temperature", 1.0, 6.0),
    )
