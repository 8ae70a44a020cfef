"""Planting decided by a sampler: the trunk, and layer, size and number of the plants.

Copy this file, edit it, and name it in a study as `sample: {space: my_space.py:space}`.
"""

from planter import Architecture, Candidate, KernelFilter, cuts

LAYERS = ["conv1", "conv2", "conv3", "conv4", "conv5"]


def space(trial, *, image, classes):
    """One to three plants in a narrow convnet, optionally with a sub-model and KFLO kernels; then
    optionally a short fine-tuning of all weights."""
    width = trial.suggest_categorical("width", [4, 6, 8])
    trunk = Architecture(
        "convnet",
        {**dict.fromkeys(LAYERS, width), "fc1": 128},
        {"image": image, "classes": classes},
    )
    cut = trial.suggest_categorical("cut", ["none", "cut1", "cut2"])
    pipelines = {} if cut == "none" else {cut: {"before": cuts(trunk)[cut].before}}

    # Parameters of each plant have their own names, so a sampler models each plant separately.
    plants = []
    for number in range(1, trial.suggest_int("plants", 1, 3) + 1):
        layer = trial.suggest_categorical(f"plant{number}_layer", LAYERS)
        plants.append((layer, trial.suggest_categorical(f"plant{number}_channels", [2, 4, 8])))

    finetune = None
    if trial.suggest_categorical("finetune", [False, True]):
        rate = trial.suggest_float("finetune_lr", 3e-4, 3e-3, log=True)
        finetune = {"epochs": 3, "lr": rate}
    kflo = trial.suggest_categorical("kflo", [False, True])
    return Candidate(
        Architecture("convnet", trunk.widths, trunk.options, pipelines),
        kernels=KernelFilter(2, rho=2) if kflo else None,
        kd_weight=1.0,
        temperature=trial.suggest_float("temperature", 1.0, 4.0),
        plants=plants,
        plant_recipe={"lr": trial.suggest_float("plant_lr", 1e-3, 2e-2, log=True)},
        finetune=finetune,
    )
