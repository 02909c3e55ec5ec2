"""Each check, right and wrong."""

from __future__ import annotations

import pytest

from launch import preflight
from launch.preflight import (
    Check,
    check_device,
    check_disk,
    check_memory,
    check_optional,
    check_package_origin,
    check_python,
    check_torch,
    print_checks,
    run_checks,
)


def test_this_machine(tmp_path, capsys):
    checks = run_checks(tmp_path / "not" / "yet")
    assert print_checks(checks)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(checks)
    assert not (tmp_path / "not").exists()


def test_one_wrong_line_is_enough():
    assert print_checks([Check(name="a", state="ok", found=""), Check(name="b", state="missing", found="")])
    assert not print_checks([Check(name="a", state="ok", found=""), Check(name="b", state="wrong", found="")])


@pytest.mark.parametrize("name", ["json", "no_such_package"])
def test_foreign_package_of_our_name(name):
    check = check_package_origin(name)
    assert check.state == "wrong"
    assert "project's root" in check.found


def test_python_version(monkeypatch):
    assert check_python().state == "ok"
    monkeypatch.setattr(preflight.sys, "version_info", (3, 10, 2))
    assert check_python().found.startswith("3.10.2, expected")


def test_torch_version(tmp_path, monkeypatch):
    assert check_torch().state == "ok"
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text('[project]\ndependencies = ["torch==1.0.0"]\n')
    assert check_torch(pyproject).state == "wrong"
    assert "expected 1.0.0" in check_torch(pyproject).found

    def absent(name):
        raise preflight.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(preflight.importlib.metadata, "version", absent)
    assert "not installed" in check_torch().found


def test_memory(tmp_path):
    meminfo = tmp_path / "meminfo"
    assert check_memory(meminfo).state == "missing"
    meminfo.write_text("MemTotal: 1 kB\nMemAvailable:    1000000 kB\n")
    assert check_memory(meminfo) == Check(
        name="memory", state="wrong", found="1.0 GB free, expected at least 3 GB: end other programs"
    )
    meminfo.write_text("MemAvailable: 10000000 kB\n")
    assert check_memory(meminfo).state == "ok"


def test_disk(tmp_path, monkeypatch):
    assert check_disk(tmp_path / "a" / "b").state == "ok"
    (tmp_path / "file").touch()
    assert "cannot write" in check_disk(tmp_path / "file").found
    monkeypatch.setattr(preflight, "MIN_DISK_GB", 1e9)
    assert check_disk(tmp_path).state == "wrong"


def test_options():
    assert check_optional("json", "reading").state == "ok"
    assert check_optional("no_such_package", "flying") == Check(
        name="no_such_package", state="missing", found="flying (optional)"
    )


def test_device():
    assert check_device().state == "ok"
