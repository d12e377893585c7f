"""Compares models of other libraries with converted copies; docs/reference/works-with.md.

    pip install ".[works-with]"
    python tests/works_with.py --write docs/reference/works-with.md

A case compares a model with a converted copy, by outputs and gradients or by the losses of a
training, in float64 if the library allows it.
"""

import argparse
import copy
import importlib.metadata
import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves

import fastlstm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from markdown import publish  # noqa: E402


class Case(NamedTuple):
    """A row of the table, and the function that tests it."""

    package: str  # name for pip, or "" if the case rebuilds a model of the library
    library: str
    what: str  # what is compared
    run: Callable[[], None]
    result: str  # what the table says if `run` raises nothing

    def version(self):
        """Returns the installed version, "" without a package, or None if it is not installed."""
        try:
            return importlib.metadata.version(self.package) if self.package else ""
        except importlib.metadata.PackageNotFoundError:
            return None


CASES = {}


def case(library, what, package=None, result="the same"):
    """Adds the decorated function to CASES. `package` is the library if it is not given."""

    def add(run):
        name = library if package is None else package
        CASES[run.__name__] = Case(name, library, what, run, result)
        return run

    return add


@contextmanager
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def both(model):
    assert any(isinstance(module, nn.LSTM) for module in model.modules()), "no LSTM to convert"
    return model, fastlstm.convert(copy.deepcopy(model))


def same(model, call, **tolerance):
    """Compares the outputs of the model and its copy, and the gradients of their mean squares."""
    results = []
    for m in both(model):
        m.zero_grad()
        torch.manual_seed(0)
        leaves = [x for x in tree_leaves(call(m)) if isinstance(x, Tensor)]
        outputs = [x for x in leaves if x.is_floating_point()]
        torch.stack([x.square().mean() for x in outputs]).sum().backward()
        results.append((outputs, [p.grad for p in m.parameters() if p.grad is not None]))
    assert results[0][1], "no gradients"
    torch.testing.assert_close(*results, **tolerance)


def same_losses(train):
    """Compares the losses that train(change) returns, with nn.LSTM and with the converted model."""
    losses = []
    for change in (lambda model: model, fastlstm.convert):
        torch.manual_seed(0)
        losses.append(train(change))
    assert losses[0]
    torch.testing.assert_close(*losses)


class Tagger(nn.Module):
    """A model for libraries that train or explain the models of their users."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


@case("torchrl", "LSTMModule in recurrent mode, episodes begin inside rows; make_cudnn_based")
def torchrl_module():
    from tensordict import TensorDict
    from torchrl.modules import LSTMModule, set_recurrent_mode

    def call(module):
        x, begins = torch.randn(3, 9, 4), torch.rand(3, 9, 1) < 0.3
        states = {key: torch.zeros(3, 9, 1, 8) for key in module.in_keys[1:3]}
        data = TensorDict({"x": x, "is_init": begins, **states}, [3, 9])
        with set_recurrent_mode(True):
            return module(data)["y"]

    module = LSTMModule(4, 8, in_key="x", out_key="y")
    same(module, call)
    converted = fastlstm.convert(module).make_cudnn_based()
    assert isinstance(converted.lstm, fastlstm.LSTM)


@case("rsl-rl-lib", "RNN, rollout and update with masks")
def rsl_rl():
    from rsl_rl.modules import RNN

    def call(rnn):
        rnn.hidden_state = None
        steps = [rnn(torch.randn(3, 8)) for _ in range(2)]
        state = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
        return steps, rnn(torch.randn(5, 3, 8), torch.ones(5, 3, dtype=torch.bool), state)

    same(RNN(8, 16, 2, "lstm"), call)


@case("sample-factory", "ModelCoreRNN, one step and a packed batch")
def sample_factory():
    from types import SimpleNamespace

    from sample_factory.model.core import ModelCoreRNN

    options = SimpleNamespace(rnn_type="lstm", rnn_size=16, rnn_num_layers=1)

    def call(core):
        packed = pack_padded_sequence(torch.randn(7, 3, 8), torch.tensor([7, 5, 2]))
        step = core(torch.randn(3, 8), torch.randn(3, 32))
        return step, core(packed, torch.zeros(3, 32))[0].data

    same(ModelCoreRNN(options, 8), call)


@case("skrl", "PPO_RNN, a whole training of a GaussianMixin policy that resets where episodes end")
def skrl():
    torch.set_default_dtype(torch.float32)  # the dtype of skrl's memory
    same_losses(train_skrl)


def train_skrl(change):
    import gymnasium
    from skrl.agents.torch.ppo import PPO_RNN
    from skrl.envs.wrappers.torch import wrap_env
    from skrl.memories.torch import RandomMemory
    from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
    from skrl.trainers.torch import SequentialTrainer

    steps, envs, hidden = 8, 4, 16

    class Policy(GaussianMixin, Model):
        def __init__(self, **spaces):
            Model.__init__(self, **spaces)
            GaussianMixin.__init__(self)
            self.lstm, self.head = nn.LSTM(3, hidden, batch_first=True), nn.Linear(hidden, 1)
            self.log_std = nn.Parameter(torch.zeros(1))

        def get_specification(self):
            return {"rnn": {"sequence_length": steps, "sizes": [(1, envs, hidden)] * 2}}

        def compute(self, inputs, role):
            x, state = inputs["observations"], tuple(inputs["rnn"])
            if not self.training:
                output, state = self.lstm(x.unsqueeze(1), state)
                return self.head(output[:, 0]), {"log_std": self.log_std, "rnn": list(state)}
            x = x.view(-1, steps, 3)
            state = tuple(s.view(1, -1, steps, hidden)[:, :, 0].contiguous() for s in state)
            ended = (inputs["terminated"] | inputs["truncated"]).view(-1, steps)
            outputs = []
            bounds = [0, *(ended[:, :-1].any(0).nonzero().flatten() + 1).tolist(), steps]
            for start, end in zip(bounds, bounds[1:], strict=False):
                output, state = self.lstm(x[:, start:end], state)
                state = tuple(s * ~ended[:, end - 1, None] for s in state)
                outputs.append(output)
            return self.head(torch.cat(outputs, 1).flatten(0, 1)), {"log_std": self.log_std}

    class Value(DeterministicMixin, Model):
        def __init__(self, **spaces):
            Model.__init__(self, **spaces)
            DeterministicMixin.__init__(self)
            self.head = nn.Linear(3, 1)

        def compute(self, inputs, role):
            return self.head(inputs["observations"]), {}

    environments = gymnasium.make_vec("Pendulum-v1", envs, "sync", max_episode_steps=13)
    env = wrap_env(environments, verbose=False)
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    models = {"policy": change(Policy(**spaces, device="cpu")), "value": Value(**spaces)}
    before = [parameter.clone() for parameter in models["policy"].parameters()]
    no_files = {"write_interval": 0, "checkpoint_interval": 0}
    agent = PPO_RNN(
        models=models,
        memory=RandomMemory(memory_size=32, num_envs=envs, device="cpu"),
        cfg={"rollouts": 32, "learning_epochs": 2, "mini_batches": 2, "experiment": no_files},
        device="cpu",
        **spaces,
    )
    quiet = {"disable_progressbar": True, "close_environment_at_exit": False, "headless": True}
    SequentialTrainer(env=env, agents=agent, cfg={"timesteps": 64, **quiet}).train()
    after = [*models["policy"].parameters()]
    assert not any(map(torch.equal, before, after)), "nothing was learned"
    return torch.cat([parameter.flatten() for parameter in after]).tolist()


@case("lightning", "Trainer.fit")
def lightning():
    from lightning.pytorch import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.tagger, self.losses = Tagger(), []

        def training_step(self, batch, index):
            loss = self.tagger(batch[0]).square().mean()
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")

    def train(change):
        module = change(Module())
        data = torch.utils.data.TensorDataset(torch.randn(8, 5, 4))
        trainer = Trainer(max_epochs=2, accelerator="cpu", **dict.fromkeys(quiet, False))
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))
        return module.losses

    same_losses(train)


@case("skorch", "NeuralNetRegressor.fit")
def skorch():
    from skorch import NeuralNetRegressor

    def train(change):
        net = NeuralNetRegressor(change(Tagger()), max_epochs=3, lr=0.1, verbose=0)
        x = torch.randn(32, 6, 4)
        net.fit(x.numpy(), x[:, :3, 0].numpy())
        return [float(loss) for loss in net.history[:, "train_loss"]]

    same_losses(train)


@case("transformers", "EncodecModel from a configuration, encoder and decoder")
def encodec():
    from transformers import EncodecConfig, EncodecModel

    sizes = {"num_filters": 4, "hidden_size": 16, "codebook_size": 32, "codebook_dim": 16}
    model = EncodecModel(EncodecConfig(**sizes, upsampling_ratios=[4, 2])).double()
    same(model, lambda m: m.decoder(m.encoder(torch.randn(2, 1, 160))))


@case("easyocr", "the recognizer, vgg_model.Model")
def easyocr():
    from easyocr.model.vgg_model import Model

    same(Model(1, 16, 32, 20), lambda m: m(torch.randn(2, 1, 32, 64), None))


@case("python-doctr", "crnn_vgg16_bn, its loss")
def doctr():
    from doctr.models.recognition import crnn_vgg16_bn

    model = crnn_vgg16_bn(pretrained=False, pretrained_backbone=False)
    model.feat_extractor.requires_grad_(False)  # 15 million weights need no test
    same(model, lambda m: m(torch.randn(2, 3, 32, 64), ["ab", "c"])["loss"])


@case("stanza", "PackedLSTM and HighwayLSTM")
def stanza():
    from stanza.models.common.hlstm import HighwayLSTM
    from stanza.models.common.packed_lstm import PackedLSTM

    options = {"num_layers": 2, "batch_first": True, "bidirectional": True}
    call = lambda m: m(torch.randn(3, 7, 8), [7, 5, 2])[0]
    same(PackedLSTM(8, 16, **options), call)
    same(HighwayLSTM(8, 16, **options, highway_func=torch.tanh), call)


@case("demucs", "Demucs, two layers in both directions between convolutions")
def demucs():
    from demucs.demucs import Demucs

    model = Demucs(["a", "b"], channels=4, depth=3, lstm_layers=2, dconv_mode=0)
    same(model, lambda m: m(torch.randn(1, 2, 2000)))


@case("kraken", "TorchVGSLModel, LSTMs in both directions and in one")
def kraken():
    from kraken.lib.vgsl import TorchVGSLModel

    model = TorchVGSLModel(vgsl="[1,16,0,1 Cr3,3,8 S1(1x0)1,3 Lbx20 Lfx10 O1c8]")
    model.init_weights()
    same(model.nn, lambda m: m(torch.randn(2, 1, 16, 40), torch.tensor([40, 30])))


@case("neuralforecast", "NeuralForecast.fit and predict with models.LSTM")
def neuralforecast():
    from neuralforecast import NeuralForecast
    from neuralforecast.models import LSTM
    from neuralforecast.utils import AirPassengersDF

    torch.set_default_dtype(torch.float32)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing"), False)
    sizes = {"h": 4, "input_size": 12, "encoder_hidden_size": 16, "decoder_hidden_size": 16}

    def train(change):
        model = change(LSTM(**sizes, max_steps=3, random_seed=1, accelerator="cpu", **quiet))
        forecast = NeuralForecast([model], freq="ME")
        forecast.fit(AirPassengersDF)
        return forecast.predict()["LSTM"].tolist()

    same_losses(train)


@case("captum", "IntegratedGradients of a tagger")
def captum():
    from captum.attr import IntegratedGradients

    x = torch.randn(2, 5, 4)
    explain = lambda model: IntegratedGradients(model).attribute(x, target=1, n_steps=8)
    torch.testing.assert_close(*map(explain, both(Tagger())))


@case(
    "opacus", "ModuleValidator.fix", result="not replaced by DPLSTM: fix the model before convert"
)
def opacus():
    from opacus.layers import DPLSTM
    from opacus.validators import ModuleValidator

    plain, converted = map(ModuleValidator.fix, both(Tagger()))
    assert isinstance(plain.lstm, DPLSTM)
    assert isinstance(converted.lstm, fastlstm.LSTM)


@case("thop", "profile", result="counts no LSTM: profile before convert, or give `custom_ops`")
def thop():
    from thop import profile
    from thop.rnn_hooks import count_lstm

    model, converted = both(Tagger())
    x = torch.randn(2, 5, 4)
    operations, _ = profile(model, (x,), verbose=False)
    counters = {type(converted.lstm): count_lstm}
    assert profile(converted, (x,), custom_ops=counters, verbose=False)[0] == operations


@case("d2l and copies", "a state (h, c) if `isinstance(rnn, nn.LSTM)`, else one tensor", package="")
def d2l():
    def call(rnn):
        state = torch.zeros(1, 2, 8)
        return rnn(torch.randn(5, 2, 4), (state, state) if isinstance(rnn, nn.LSTM) else state)

    same(nn.LSTM(4, 8), call)


@case("speechbrain", "nnet.RNN.LSTM: packs rows in any order", package="")
def speechbrain():
    lengths = torch.tensor([4, 9, 6])

    def call(lstm):
        x = pack_padded_sequence(torch.randn(3, 9, 8), lengths, True, enforce_sorted=False)
        return lstm(x)[0].data

    same(nn.LSTM(8, 16, 2, batch_first=True, bidirectional=True), call)


@case("TorchBench, tts_angular", "three LSTMs, each with a Linear after it", package="")
def tts_angular():
    sizes = [(6, 12), (5, 12), (5, 12)]
    lstms = nn.ModuleList(nn.LSTM(*size, batch_first=True) for size in sizes)
    linear = nn.ModuleList(nn.Linear(12, 5, bias=False) for _ in sizes)

    def call(model):
        x = torch.randn(2, 9, 6)
        for lstm, projection in zip(*model, strict=True):
            x = projection(lstm(x)[0])
        return nn.functional.normalize(x[:, -1])

    same(nn.ModuleList([lstms, linear]), call)


def row(case):
    """Runs a case; returns its line of the table."""
    version = case.version()
    if version is None:
        result = "not tested: not installed"
    else:
        try:
            with float64(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.manual_seed(0)
                case.run()
            result = case.result
        except Exception as error:  # shown in the table
            result = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    name = f"{case.library} {version or ''}".strip() if case.package else f"{case.library} (code)"
    return f"| {name} | {case.what} | {result} |"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the table in FILE")
    args = parser.parse_args(argv)
    head = "| library | what was compared | result |\n|---|---|---|"
    rows = [row(CASES[name]) for name in args.case]
    text = f"torch {torch.__version__}, fastlstm {fastlstm.__version__}.\n\n{head}\n"
    publish(text + "\n".join(rows), args.write, "works-with")


if __name__ == "__main__":
    main()
