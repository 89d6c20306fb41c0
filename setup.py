"""What pyproject.toml cannot say: extras are the requirement files without the lines that include others."""

from pathlib import Path

from setuptools import setup


def requirements(name: str) -> list[str]:
    lines = Path(__file__).with_name(f"requirements-{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-r"))]


setup(
    extras_require={
        "label": requirements("label"),
        "export": requirements("export"),
        "dev": [*requirements("dev"), *requirements("export")],
    }
)
