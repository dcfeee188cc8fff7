"""`python -m recommender`, and the console script `recommender`."""

import sys

from recommender.server.entry import end_on_signals, escape_output, open_standard_files, prepare_environment


def main() -> None:
    """Run the command line; the exit code is the process's."""
    open_standard_files()
    escape_output()
    if sys.argv[1:2] == ["health"]:
        prepare_environment()
        from recommender.cli.clients.connecting import probe  # noqa: PLC0415 (other commands need no gRPC)

        probe(sys.argv[2:])
    if sys.argv[1:2] in (["serve"], ["worker"]):
        end_on_signals()
    from recommender.cli.main import main as run  # noqa: PLC0415 (signals and files come before it: it is slow)

    run()


if __name__ == "__main__":
    main()
