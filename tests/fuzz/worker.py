"""One target under libFuzzer. A process of its own, started by `python -m tests.fuzz`: libFuzzer ends it itself."""

import hashlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["aquad", "tarfile", "tomllib"]):
    from tests.fuzz.targets import TARGETS


def main(name, directory, *options):
    work, corpus = Path(directory, "work"), Path(directory, "corpus")
    work.mkdir(parents=True), corpus.mkdir(exist_ok=True)
    target = TARGETS[name](work)
    for seed in target.seeds:
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    words = Path(directory, "words")
    words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in target.words))
    arguments = [
        *options,
        f"-max_len={target.longest}",
        f"-dict={words}",
        f"-artifact_prefix={directory}/",
        "-timeout=20",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
        str(corpus),
    ]
    atheris.Setup([sys.argv[0], *arguments], lambda junk: target.run(junk) and None)
    atheris.Fuzz()


main(*sys.argv[1:])
