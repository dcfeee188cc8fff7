"""The command line with a server and a supervisor whose `run` finds a file missing."""

from __future__ import annotations

from recommender.cli.main import main
from recommender.server import server, supervisor
from recommender.server.process import ExitCode


class BreakingServer(server.Server):
    async def run(self) -> ExitCode:
        raise FileNotFoundError(2, "No such file or directory", "/gone")


class BreakingSupervisor(supervisor.Supervisor):
    async def run(self) -> ExitCode:
        try:
            raise FileNotFoundError(2, "No such file or directory", "/gone")
        finally:
            await self.close()


server.Server = BreakingServer  # type: ignore[misc]
supervisor.Supervisor = BreakingSupervisor  # type: ignore[misc]

if __name__ == "__main__":
    main()
