"""How time and memory grow with the corpus: plans, resumes and publications of a million units, and rows times ten."""
