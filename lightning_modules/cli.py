"""The command ``learned-optim``: ``fit``, ``validate`` and ``test`` from a configuration file."""

from __future__ import annotations


def main(args: list[str] | None = None) -> None:
    """Runs Lightning's command line on the LightningModules and data of this package.

    ``learned-optim fit --config FILE`` trains; ``--help`` after a subcommand lists the options. Any LightningModule can
    be named by its class path in the file. Checkpoints are written by `AtomicCheckpointIO` unless ``trainer.plugins``
    says otherwise.
    """
    try:
        from pytorch_lightning.cli import LightningCLI

        import lightning_modules

        for name in lightning_modules.__all__:
            getattr(lightning_modules, name)  # imports it, so that files can name it without its path
    except ImportError as error:
        raise SystemExit(f"learned-optim needs Lightning: pip install 'learned-optim[lightning]' ({error})") from error

    class CLI(LightningCLI):
        def instantiate_classes(self) -> None:
            try:
                super().instantiate_classes()
            except (ValueError, OSError) as error:
                # jsonargparse wraps what a class raises; that data are missing says enough by itself.
                cause: BaseException | None = error
                while cause is not None and not isinstance(cause, FileNotFoundError):
                    cause = cause.__cause__
                if cause is None:
                    raise
                raise SystemExit(f"learned-optim: {cause}") from error

    saving = {"class_path": "lightning_modules.AtomicCheckpointIO"}
    CLI(args=args, save_config_kwargs={"overwrite": True}, trainer_defaults={"plugins": [saving]})


if __name__ == "__main__":
    main()
