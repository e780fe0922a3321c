"""The frontier: methods that think, on the same questions, for the same training FLOPs.

inward frontier --list          what there is, what is done, what is missing
inward frontier --scale pilot   says its core-hours, then runs what is missing
inward frontier --report        tables, plots and findings from the rows there are

tasks     records (question, steps, answer) and, where the form is fixed, cells
scales    sizes, budgets, seeds and rates: tiny for tests, first for a look, pilot to compare
arms      plain, cot, pause, huginn, coconut, interleaved, superposed, trm
budget    equal parameters by the width of the feed-forward, equal training FLOPs by the meter
runs      one run: train (or go on), choose on validation, ask the test questions
rows      what is written, what is missing, which rate was chosen
compare   paired differences, ties, dominance
report    the same as tables in Markdown
"""
