"""LLC, refined LLC of every head, and susceptibilities of a small pretrained model; README.md says what to expect.

python experiments/pretrained/run.py [--data DIR] [--out DIR] [--num-draws N]

Cells are marked with `# %%`, so that editors show this file as a notebook; the last expressions show themselves there.
"""

# %% A pretrained model: 260,032 parameters, Llama architecture, trained on TinyStories.
import argparse
import json
from pathlib import Path

import jax
import numpy as np
from stories import decode, encode, greedy, read_vocabulary, sampled

import llcjax
from llcjax.config import as_dict
from llcjax.plots import plot_matrix, plot_susceptibilities
from llcjax.report import Extra, write_report

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "data")
parser.add_argument("--out", type=Path, default=Path("runs/stories260K"))
parser.add_argument("--num-draws", type=int, default=40)
parser.add_argument("--num-sequences", type=int, default=1024, help="texts of the model's own that the loss is over")
parser.add_argument("--length", type=int, default=32, help="tokens of each")
parser.add_argument("--num-components", type=int, default=40, help="heads to look at, from the first")
arguments, _ = parser.parse_known_args()

config, params = llcjax.load_pretrained(arguments.data / "stories260K.bin")
pieces = read_vocabulary(arguments.data / "tok512.bin", config.vocabulary)
apply = llcjax.decoder(config)
loss_fn = llcjax.next_token_loss(apply)
story, _ = greedy(apply, params, pieces, "Once upon a time", 100)
print(story)

# %% Its own texts as data: for them the checkpoint is (nearly) a minimum of the loss.
data = sampled(apply, params, jax.random.key(0), arguments.num_sequences, arguments.length)
losses, weights = loss_fn(params, data)
own_loss = float((losses * weights).sum() / weights.sum())
print(f"loss on its own texts: {own_loss:.3f} nats a token; one of them: {decode(pieces, data[0])}")

# %% All parameters and each of the 40 heads, as one sweep; probes for the susceptibilities.
SENTENCES = [
    "Once upon a time, there was a little girl named Lily.", "Tom and his mom went to the park to play.",
    "The dog was very happy and wagged his tail.", "She said, \"Thank you, mom!\" and hugged her.",
    "He was sad because his toy was broken.", "One day, a big bear came to the tree.",
    "It was the best day ever and they were happy.", "the the the the the the the the the the",
    "zq xv jk wp qq zz vv xk jq", "1234567890 + 1234567890",
]  # fmt: skip
encoded = [encode(pieces, sentence)[:12] for sentence in SENTENCES]
probe = np.array([tokens + tokens[1:2] * (12 - len(tokens)) for tokens in encoded], np.int32)
names = ["full", *llcjax.head_names(config.num_layers, config.num_heads)[: arguments.num_components]]
parts = llcjax.component_masks(
    params, names, num_heads=config.num_heads, num_key_value_heads=config.num_key_value_heads
)
# On a plateau in step size, and local, by calibrate.py; a chain forgets its start in 2 / (step_size * localization) =
# 13 steps.
settings = llcjax.SweepConfig(
    n_beta=100.0, localization=3000.0, step_size=5e-5, batch_size=8, num_chains=4, num_draws=arguments.num_draws,
    num_burnin_steps=arguments.num_draws,
)  # fmt: skip
facts = llcjax.sweep(
    loss_fn, llcjax.checkpoints.bank_of(params), data, settings, components=parts, out=arguments.out / "sweep",
    probes={"own": data[:8], "sentences": probe}, chance=float(np.log(config.vocabulary)), progress=True,
)  # fmt: skip

# %%
table = llcjax.estimates(facts)
for name, llc, error, verdict in zip(
    names, table["llc"].values[0], table["llc_stderr"].values[0], table["verdict"].values[0], strict=True
):
    print(f"{name:28s} LLC {llc:8.3f} +- {error:.3f}  {verdict}")

# %%
chi = llcjax.susceptibilities(facts, "sentences", "own", full="full")
kernel = llcjax.loss_kernel(facts, "sentences")
labels = [sentence[:24] for sentence in SENTENCES]
report = write_report(
    arguments.out,
    title="stories260K",
    sweep=facts,
    estimates=table,
    metrics=None,
    stages=None,
    config=as_dict(settings),
    provenance=json.loads(facts.attrs["provenance"]),
    command=f"python experiments/pretrained/run.py --num-draws {arguments.num_draws}",
    notes=[f"Greedy continuation: {story}", f"Loss on its own texts: {own_loss:.3f} nats a token."],
    chance_name="uniform predictor",
    extra=[
        Extra("susceptibilities", plot_susceptibilities(chi, labels=labels),
              "Susceptibility of every head (rows) to a shift of the data towards each sentence (columns). Red: the "
              "mean loss over the head's posterior rises as texts like this become more frequent; blue: it falls."),
        Extra("kernel", plot_matrix(kernel), "Correlation of the losses of the sentences over the posterior of all "
              "parameters."),
    ],
)  # fmt: skip
print(f"report: {report.resolve()}")
