"""Settings: read once, checked whole, then just values. Only doors and wiring come here.

`load` reads defaults, the TOML file and the environment, in rising order of precedence, and raises SettingsInvalid with
every mistake at once. Secrets are never values here: every one is a `*_file`, read where it is used.
"""

from aquad.settings.generate import generate
from aquad.settings.load import Loaded, load
from aquad.settings.model import Settings

__all__ = ["Loaded", "Settings", "generate", "load"]
