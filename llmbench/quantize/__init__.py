"""Models made smaller: what flows through a float model is observed, outliers are moved, and linears become int8.

`samples` chooses what is read; `calibrate` lets it flow through the model layer by layer (`forward`), observes what
goes into each linear (`observers`) and moves its outliers into the weights (`smooth`); `choose` says which linears stay
float; `linears` has the formulas of int8; `make` puts it all together and writes the model.
"""
