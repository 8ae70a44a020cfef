// planter's names beside Optuna's numbers, and the way to planter's own page.
const link = document.createElement("a");
link.id = "planter-pages";
link.href = "/planter/report.html";
link.textContent = "planter's report";
document.body.append(link);

const names = new Map();
let study = null;

async function learn() {
  const here = location.pathname.match(/\/studies\/(\d+)/)?.[1] ?? null;
  if (here === study) return;
  study = here;
  names.clear();
  if (here === null) return;
  const told = await (await fetch(`/api/studies/${here}`)).json();
  for (const trial of told.trials ?? []) {
    const id = trial.user_attrs?.find(one => one.key === "id")?.value;
    if (id) names.set(String(trial.number), String(id).replace(/^"|"$/g, ""));
  }
  label();
}

function label() {
  for (const element of document.querySelectorAll(".MuiTypography-root, h5, h4")) {
    const number = element.textContent.match(/^Trial (\d+)( \(trial_id=\d+\))?$/)?.[1];
    const name = number && names.get(number);
    if (name) {
      if (element.dataset.planter !== name) element.dataset.planter = name;
    } else if (element.dataset.planter) delete element.dataset.planter;
  }
}

new MutationObserver(() => { learn(); label(); }).observe(
  document.getElementById("dashboard"), {childList: true, subtree: true, characterData: true});
