"""The proof of R1, R2 and R3, pair by pair: what to ask, the asking, the judgement, the report.

Theory of operation: four steps, of which only the second touches the kernel.

- ``matrix`` makes the pairs: every source endpoint with every address of every endpoint;
- ``probe`` sends packets for each pair, from inside of the source's namespace to responders inside of the
  destination's, and returns what both ends saw (``CellResult``);
- ``verdict`` judges these results: which requirement broke, and how, in one sentence each;
- ``report`` prints a judged report: table, heat-map, JSON, JUnit.
"""
