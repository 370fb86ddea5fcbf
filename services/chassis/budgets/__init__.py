"""Budgets of money, kept hard: reserved before it is spent, leased in slices by many processes.

Which accounts there are, and what each may spend, is known to the service that uses them.
"""
