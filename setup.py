"""Carry configs/ and scripts/ in the wheel, inside the package; all else stands in setup.cfg."""

from setuptools import find_packages, setup

CARRIED = {"afintro._configs": "configs", "afintro._scripts": "scripts"}

setup(packages=[*find_packages(include=["afintro*"]), *CARRIED], package_dir=CARRIED)
