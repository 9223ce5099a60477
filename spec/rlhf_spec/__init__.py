"""What is right: the specification of an RLHF trainer's model layer, advantages and losses, in words and as
formulas.

Each chapter is two files with one name: ``policy_loss.md`` holds the clauses (read by :mod:`rlhf_spec.clauses`), and
``policy_loss.py`` the same formulas as plain Python over floats and lists, slow and obvious, with worked numbers.
``decisions.md`` says what was decided where the literature leaves a choice. Only the standard library is needed.
"""
