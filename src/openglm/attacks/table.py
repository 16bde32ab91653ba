"""The table: all attacks, and those that cannot be tried on this server yet, with the reason."""

from __future__ import annotations

from collections.abc import Sequence

from openglm.attacks import (
    access,
    artefacts,
    fetching,
    files,
    folders,
    load,
    prompts,
    sharing,
    sizes,
)
from openglm.attacks.attack import Attack
from openglm.errors import UsageError, suggest

ATTACKS: tuple[Attack, ...] = (
    Attack(
        "A1",
        "every route, written in many ways, without a key or with a wrong one; websockets",
        "closed by default, whatever the path",
        access.without_a_key,
    ),
    Attack(
        "A2",
        "guessing keys by what the answer says and how long it takes",
        "the same words and the same time for ids that exist and those that do not",
        access.guessing,
    ),
    Attack(
        "A3",
        "forged tokens: alg none, another algorithm, expired, too far ahead, huge",
        "401",
        access.forged_tokens,
    ),
    Attack(
        "A4",
        "finding keys in addresses, answers, metrics and the log",
        "never there; a key in the address opens nothing",
        access.leaked_keys,
    ),
    Attack(
        "A6",
        "a page whose name was made to resolve to this server (DNS rebinding)",
        "refused by Host, with and without Origin",
        access.other_names,
    ),
    Attack(
        "A7",
        "pages of other origins, null among them",
        "refused, and no leave to read the answer",
        access.other_origins,
    ),
    Attack(
        "A8",
        "forms and plain texts that pages send unasked, keys in cookies",
        "refused",
        access.forged_forms,
    ),
    Attack(
        "A9",
        "guessing the ids of answers, files and jobs",
        "128 random bits, and 404",
        access.guessed_ids,
    ),
    Attack(
        "A9-files",
        "reading, listing and deleting another user's files",
        "404",
        files.files_of_others,
    ),
    Attack(
        "A10",
        "keys that everybody knows, and none at all",
        "401: a server never runs without keys",
        access.known_keys,
    ),
    Attack(
        "F1",
        "names of uploads that lead elsewhere, or are none",
        "stored under a random id; the name is data",
        files.hostile_names,
    ),
    Attack(
        "F2",
        "ids of files that are paths, plain or encoded",
        "404",
        files.hostile_ids,
    ),
    Attack(
        "F3",
        "two uploads of one name",
        "both are kept",
        files.same_name,
    ),
    Attack(
        "F4",
        "folders to import with links that lead out of them, and pipes",
        "refused",
        folders.folders_that_lead_out,
    ),
    Attack(
        "F8",
        "pages with programs, uploaded as files and opened",
        "saved, never shown",
        files.shown_pages,
    ),
    Attack(
        "F9",
        "names of models that are paths",
        "404, or 403 where models are loaded",
        files.models_by_path,
    ),
    Attack(
        "M1",
        "checkpoints that are programs (pickle)",
        "refused, and nothing is run",
        artefacts.pickles,
    ),
    Attack(
        "M2",
        "safetensors with lies in their header",
        "refused, and nothing else is read",
        artefacts.headers,
    ),
    Attack("M3", "sparse tensors that point anywhere", "refused", artefacts.sparse_tensors),
    Attack(
        "M4",
        "code and templates beside the weights (trust_remote_code)",
        "never run",
        artefacts.code_beside_weights,
    ),
    Attack(
        "M5",
        "models of a billion layers, of none, of half a head",
        "refused before memory is taken",
        artefacts.impossible_sizes,
    ),
    Attack(
        "M7",
        "training runs with programs in them (pickle)",
        "refused, or left alone; nothing is run",
        folders.runs_with_programs,
    ),
    Attack(
        "S1",
        "addresses in messages and fields that the server is to fetch or to call back",
        "nobody comes",
        fetching.addresses,
    ),
    Attack(
        "R1",
        "a million completions, prompts, texts, messages or tools",
        "400 before the engine sees it",
        sizes.many_at_once,
    ),
    Attack(
        "R2",
        "numbers that are negative, endless, no numbers, or too long",
        "400",
        sizes.odd_numbers,
    ),
    Attack(
        "R3",
        "biases of 100,000 tokens, a million alternatives, tokens that do not exist",
        "bounded",
        sizes.biases_and_alternatives,
    ),
    Attack(
        "R4-large",
        "bodies of a gigabyte or without an end, large headers, two lengths, many parts",
        "413, 431 or 400",
        sizes.large_requests,
    ),
    Attack(
        "R4-odd",
        "JSON that is deep, broken, doubled, of half characters",
        "400, never the server's fault",
        sizes.odd_bodies,
    ),
    Attack(
        "R4-slow",
        "clients that send a byte now and then",
        "others are answered",
        sizes.slow_clients,
    ),
    Attack(
        "R5",
        "texts of megabytes that are slow to tokenise",
        "refused by their size, while others are answered",
        sizes.long_texts,
    ),
    Attack(
        "R6",
        "schemas and patterns that are endless to compile, or not understood",
        "answered or refused in seconds; the server survives",
        load.grammars,
    ),
    Attack("R7", "thousands of stop texts, or a huge one", "400", sizes.many_stops),
    Attack(
        "R8",
        "streams that nobody reads",
        "others are answered, and their places become free",
        load.idle_streams,
    ),
    Attack(
        "R9",
        "clients that leave at any moment",
        "what they asked for ends",
        load.disconnects,
    ),
    Attack(
        "R12",
        "whether another user's prompt is in the cache",
        "what one key said is computed anew for another",
        sharing.cached_prompts,
    ),
    Attack(
        "R13",
        "mutations of valid calls",
        "never 5xx, never silence, no growth",
        load.fuzz,
    ),
    Attack(
        "P1",
        "calls of tools that are programs",
        "text, never run",
        prompts.evaluated_calls,
    ),
    Attack(
        "P2",
        "texts that spell command tokens, in every field",
        "read as text",
        prompts.command_tokens,
    ),
    Attack(
        "P8",
        "line breaks and escape sequences in names, paths and fields",
        "no header and no line of the log is the client's",
        prompts.logged_lines,
    ),
)
OMITTED = {
    "A5": "a stolen database cannot be seen from outside",
    "F5": "no paths are taken from clients; F1, F2 and F9 send some all the same",
    "F6": "what clients send is read as JSON, and never unpacked",
    "F7": "no images are read",
    "M6": "no indexes are imported",
    "M8": "models are never sent anywhere, and no client can have one fetched",
    "S2": "nothing is fetched for clients, so nothing is redirected",
    "S3": "nothing is fetched for clients, so no name is resolved",
    "S4": "nothing is fetched for clients, so nobody is waited for",
    "S5": "nothing is fetched for clients, so no error tells of it",
    "S6": "nothing is fetched for clients; S1 sends such fields all the same",
    "R10": "no images are made",
    "R11": "it would fill the disk where it succeeds; quotas of files have their own tests",
    "P3": "no knowledge bases yet",
    "P4": "only a browser can tell; tests/e2e/test_serve_web.py drives one on the web page",
    "P5": "as P4",
    "P6": "no tools run here: calls go back to the client",
    "P7": "no training through the API yet; `glm pretrain` reads files of its operator",
}
"""Row -> why it is not in the table."""


def choose(only: Sequence[str]) -> tuple[Attack, ...]:
    """The attacks of these ids, in the order of the table; R4 stands for all of R4; none for all.

    Raises:
        UsageError: there is no such row.
    """
    known = {attack.id for attack in ATTACKS}
    known |= {name.partition("-")[0] for name in known}
    for name in only:
        if name not in known:
            why = OMITTED.get(name)
            raise UsageError(f"there is no attack {name}", hint=why or suggest(name, known))
    chosen = {*only} or known
    return tuple(a for a in ATTACKS if a.id in chosen or a.id.partition("-")[0] in chosen)
