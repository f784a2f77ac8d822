"""Mutation testing by hand: change one line of a module, and see whether a fast test notices.

    python -m tests.mutation flower_dhb/agent/codec.py flower_dhb/agent --mutants 30 --seed 1

Each mutant is one small change (a comparison, a sign, a constant, a dropped statement, swapped
arguments, …). The fast tests that call the changed function run on it; a mutant that they let
pass is printed with its line. The first run traces once which test calls which function, and
keeps that in `.mutation/`; later it traces again only test files that have changed.

The core of the peers' protocol has its own list of mistakes, one for each of its rules:

    python -m tests.mutation.protocol --only acknowledg

Why not mutmut or cosmic-ray: mutmut leaves out every decorated class, and nearly all classes here
are frozen dataclasses; it has no sampling by line either. cosmic-ray writes its mutants into the
working tree and starts a fresh interpreter for each, which here means three seconds for the
imports of torch and Flower alone. This script imports them once and forks per mutant; mutants
live in a copy of the tree under the temporary folder, and nothing in the working tree changes.
"""
