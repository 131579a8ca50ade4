"""Systems without any language model whose effects, leaks and confounds are known: does the evaluation see what was planted?"""
