"""The command ``learned-optim``: ``fit``, ``validate`` and ``test`` from a configuration file."""

from __future__ import annotations


def main(args: list[str] | None = None) -> None:
    """Runs Lightning's command line on the LightningModules and data of this package.

    ``learned-optim fit --config FILE`` trains; ``--help`` after a subcommand lists the options. Any LightningModule can
    be named by its class path in the file.
    """
    try:
        from pytorch_lightning.cli import LightningCLI

        # Imported so that files can name them without their path.
        from lightning_modules import LearnedOptimizerModule, MAMLModule, TaskDataModule  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"learned-optim needs Lightning: pip install 'learned-optim[lightning]' ({error})") from error

    LightningCLI(args=args, save_config_kwargs={"overwrite": True})


if __name__ == "__main__":
    main()
