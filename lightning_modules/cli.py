"""The command ``learned-optim``: ``fit``, ``validate`` and ``test`` from a configuration file, and ``race``."""

from __future__ import annotations

import os
import re
import sys


def main(args: list[str] | None = None) -> None:
    """Runs a race, or Lightning's command line on the LightningModules and data of this package.

    ``learned-optim race --help`` says what a race is; it does not need Lightning.
    ``learned-optim fit --config FILE`` trains; ``--help`` after a subcommand lists the options. Any LightningModule can
    be named by its class path in the file. Checkpoints are written by `AtomicCheckpointIO` unless ``trainer.plugins``
    says otherwise.
    """
    given = sys.argv[1:] if args is None else args
    if given[:1] == ["race"]:
        from learned_optim.race.command import main as race

        race(given[1:])
        return
    sys.path.insert(0, os.getcwd())  # where modules of the user's own are looked for
    try:
        from pytorch_lightning.cli import LightningCLI

        import learned_optim
        import lightning_modules
        import meta_init

        for name in lightning_modules.__all__:
            getattr(lightning_modules, name)  # imports it, so that files can name it without its path
    except ImportError as error:
        raise SystemExit(f"learned-optim needs Lightning: pip install 'learned-optim[lightning]' ({error})") from error

    class CLI(LightningCLI):
        def instantiate_classes(self) -> None:
            try:
                super().instantiate_classes()
            except (ValueError, OSError) as error:
                # jsonargparse wraps what a class raises; what ours say, or that data are missing, is enough by itself.
                ours = {*learned_optim.__all__, *lightning_modules.__all__, *meta_init.__all__}
                cause: BaseException | None = error
                while cause is not None and not (
                    isinstance(cause, FileNotFoundError) or re.split(r"\W", str(cause))[0] in ours
                ):
                    cause = cause.__cause__
                if cause is None:
                    raise
                raise SystemExit(f"learned-optim: {cause}") from error

    saving = {"class_path": "lightning_modules.AtomicCheckpointIO"}
    CLI(
        args=args,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"plugins": [saving]},
        parser_kwargs={"epilog": "learned-optim race --help: races between optimizers"},
    )


if __name__ == "__main__":
    main()
