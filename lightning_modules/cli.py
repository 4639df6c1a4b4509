"""The command ``learned-optim``: ``fit``, ``validate`` and ``test`` from a configuration file."""

from __future__ import annotations


def main(args: list[str] | None = None) -> None:
    """Runs Lightning's command line on the LightningModules and data of this package.

    ``learned-optim fit --config FILE`` trains; ``--help`` after a subcommand lists the options. Any LightningModule can
    be named by its class path in the file.
    """
    from pytorch_lightning.cli import LightningCLI

    LightningCLI(args=args, save_config_kwargs={"overwrite": True})


if __name__ == "__main__":
    main()
