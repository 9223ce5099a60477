"""Diagnosis: from a failing case to what is wrong, where, as far as the evidence goes.

A failing clause is tried once more with all of its comparisons on record, on its smallest failing case and on some
that are drawn anew. Four looks are taken at what that shows: where in the batch the returned numbers come from
(`provenance`), which known fault or undeclared convention answers alike (`nearest`), the formula with the numbers put
into it (`steps`), and the batch as a picture (`provenance` once more). Beside them what went to the adapter and came
back is kept (`exchange`), for a script that shows the failure without this package. Nothing is claimed where the
evidence allows for more than one reading.
"""
