"""`python -m services doctor`: looks at everything that a run can suffer from, changes nothing, and says what to do.

`findings.py` says what a check may answer and runs them side by side; `looks.py` puts the checks together; the others
are the checks: the machine (`machine.py`), secrets (`secrets.py`), certificates (`certificates.py`), the databases
(`databases.py`), the bus (`topics.py`) and the services as they answer (`answers.py`).
"""
