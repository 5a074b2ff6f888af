"""Reads what the flows wrote to MLflow's database."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One MLflow run, read off the database: MLflow's own client leaves connections open."""

    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]

    def outcomes(self) -> dict[str, str]:
        prefix = "dvc.outcome."
        return {
            key.removeprefix(prefix): value
            for key, value in self.tags.items()
            if key.startswith(prefix)
        }


def read_runs(root: Path) -> list[Run]:
    """Return the runs of the project at `root`, oldest first."""
    with closing(sqlite3.connect(root / "mlflow.db")) as database:

        def pairs(table: str, run: str) -> dict:
            return dict(
                database.execute(f"select key, value from {table} where run_uuid = ?", [run])
            )

        found = database.execute("select run_uuid, status from runs order by start_time").fetchall()
        return [
            Run(status, pairs("tags", run), pairs("params", run), pairs("latest_metrics", run))
            for run, status in found
        ]


def read_versions(root: Path) -> list[tuple[int, list[str]]]:
    """Return number and aliases of each registered model version, oldest first."""
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        aliases = database.execute("select version, alias from registered_model_aliases").fetchall()
        numbers = database.execute("select version from model_versions order by version").fetchall()
        return [(n, [alias for version, alias in aliases if version == n]) for (n,) in numbers]
