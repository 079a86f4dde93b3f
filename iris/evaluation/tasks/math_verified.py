"""Answers to MATH problems compared as mathematics (math-verify), so that 1/2, 0.5 and \\frac{1}{2} are the same."""

from collections.abc import Mapping, Sequence

from math_verify import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
    LatexExtractionConfig,
    parse,
    verify,
)

if not verify(parse("$\\boxed{\\frac{1}{2}}$", extraction_config=[LatexExtractionConfig()]), parse("so it is $0.5$")):
    # With an antlr that it was not made for, math-verify reads nothing and every answer would count as wrong.
    raise ImportError("math-verify cannot read LaTeX here: pip install 'math-verify[antlr4_9_3]'")


def process_results(doc: Mapping[str, str], results: Sequence[str]) -> dict[str, int]:
    """1 if the response ends in an answer equal to the one boxed in the solution."""
    solution = parse(doc["solution"], extraction_config=[LatexExtractionConfig()])
    return {"exact_match": int(verify(solution, parse(results[0])))}
