"""What stays the same on every report: the frame of the page, its style sheet and its glossary."""

from __future__ import annotations

from string import Template

GLOSSARY = {
    "LLC": "The local learning coefficient, n&beta; (E[L(w)] &minus; L(w*)): how quickly good weights become "
    "rare as one moves away from the weights w*. Small means degenerate (many directions leave the loss as "
    "it is), large means that the weights must be just so. It has no units. Compare it along a curve at "
    "fixed hyperparameters rather than between settings. Lau et al., "
    '<a href="https://arxiv.org/abs/2308.12108" rel="noreferrer">arXiv 2308.12108</a>.',
    "stage, type A, type B": "A stretch of training between two resting points of the LLC. In type A the LLC "
    "rises while the loss falls: the network becomes more complex. In type B it falls: it becomes simpler. "
    "Hoogland "
    'et al., <a href="https://arxiv.org/abs/2402.02364" rel="noreferrer">arXiv 2402.02364</a>.',
    "n_beta, localization, step size": "n_beta is the number of examples times the inverse temperature; the "
    "localization (&gamma;) is the strength of the pull back to w*; the step size (&epsilon;) is the "
    "sampler's.",
    "error bar": "A 95% interval from the spread between chains. It covers the noise of the sampler, neither "
    "a bias of its hyperparameters nor the difference between training runs.",
    "R-hat, ESS": "R-hat compares the spread between chains with that within them and is 1 where they agree; "
    "ESS is the number of independent draws that the chains are worth together.",
    "verdict": "The worst thing that a check found at a checkpoint; ok if none objected. What each means is "
    'in the table under <a href="#health">Can I trust it?</a>.',
}

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --soft: #5b636d; --page: #fbfbfa; --card: #fff;
  --line: #dcdfe3; --link: #0062a3; --good: #00734f; --mixed: #8a5a00; --poor: #b23a00; --code: #f1f3f5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --soft: #a3abb5; --page: #16191d;
  --card: #1e2227; --line: #363c44; --link: #6db9ee; --good: #4cc79b; --mixed: #e5b04c; --poor: #f28a57;
  --code: #282d34; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 980px; padding: 2rem 1.25rem 4rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
a { color: var(--link); }
nav { margin: 1.1rem 0 0; font-size: .9rem; }
nav a { display: inline-block; margin-right: 1.1rem; }
.subtitle, .small, figcaption { color: var(--soft); font-size: .875rem; }
.subtitle { margin: .35rem 0 1.3rem; }
.summary, .notes, details, figure img { border: 1px solid var(--line); border-radius: 6px; }
.summary { background: var(--card); border-left: 6px solid var(--soft); padding: .35rem 1.1rem; }
.summary.good { border-left-color: var(--good); }
.summary.mixed { border-left-color: var(--mixed); }
.summary.poor { border-left-color: var(--poor); }
.summary p { margin: .55rem 0; }
.summary b { margin-right: .3em; }
.notes { margin: 1rem 0 0; padding: .6rem 1.1rem; font-size: .92rem; }
.notes ul { margin: .3rem 0; padding-left: 1.2rem; }
figure { margin: 1.1rem 0 1.6rem; }
figure img { display: block; width: 100%; height: auto; background: #fff; padding: 10px; }
figcaption { margin-top: .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; line-height: 1.4; }
th, td { text-align: left; vertical-align: top; padding: .38rem .6rem; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td { overflow-wrap: break-word; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.pill { display: inline-block; padding: 0 .55em; border: 1px solid currentColor; border-radius: 1em;
  font-size: .8rem; font-weight: 600; white-space: nowrap; }
.pill.good { color: var(--good); }
.pill.mixed { color: var(--mixed); }
.pill.poor { color: var(--poor); }
details { padding: .5rem 1rem; margin: .7rem 0; background: var(--card); }
summary { cursor: pointer; font-weight: 600; }
pre { background: var(--code); border-radius: 6px; padding: .8rem 1rem; overflow-x: auto; font-size: .82rem;
  line-height: 1.45; }
dt { font-weight: 600; margin-top: .9rem; }
dd { margin: .15rem 0 0; }
"""

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="subtitle">$subtitle</p>
<div class="summary $trust">$summary</div>
$notes
<nav aria-label="Contents">$contents</nav>
</header>
<main>
$sections
</main>
</body>
</html>
""")
