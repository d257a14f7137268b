"""Package metadata, read from settings.ini, where nbdev keeps it."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages
from setuptools import setup

HERE = Path(__file__).parent
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
STATUSES = [
    "1 - Planning",
    "2 - Pre-Alpha",
    "3 - Alpha",
    "4 - Beta",
    "5 - Production/Stable",
    "6 - Mature",
    "7 - Inactive",
]
# decord has wheels for these platforms alone; elsewhere video is read through PyAV.
DECORD_WHEELS = (
    'sys_platform == "win32" or (sys_platform == "linux" and platform_machine == "x86_64")'
)

parser = ConfigParser()
parser.read(HERE / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]

requirements = [
    f"{name}; {DECORD_WHEELS}" if name.startswith("decord") else name
    for name in cfg["requirements"].split()
]
classifiers = [
    f"Development Status :: {STATUSES[int(cfg['status']) - 1]}",
    f"Intended Audience :: {cfg['audience']}",
    f"Natural Language :: {cfg['language']}",
    *(f"Programming Language :: Python :: {version}" for version in PYTHONS),
]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"].split(),
    license="Apache-2.0",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    classifiers=classifiers,
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=["promptswitch_nb", "promptswitch_nb.*"]),
    package_data={"promptswitch_nb": ["page/*.html"]},
    install_requires=requirements,
    extras_require={
        "dev": cfg["dev_requirements"].split(),
        "mteb": cfg["mteb_requirements"].split(),
        "search": cfg["search_requirements"].split(),
        "milvus": cfg["milvus_requirements"].split(),
        "siglip": cfg["siglip_requirements"].split(),
        "ray": cfg["ray_requirements"].split(),
        "frames": cfg["frames_requirements"].split(),
        "docs": cfg["docs_requirements"].split(),
    },
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "promptswitch_nb.systems": cfg["systems"].split(),
        "promptswitch_nb.encoders": cfg["encoders"].split(),
        "promptswitch_nb.fusions": cfg["fusions"].split(),
        "promptswitch_nb.stores": cfg["stores"].split(),
    },
    zip_safe=False,
)
