"""Tests of the tests: `make mutants` puts one defect after the other into a copy of the tree, and sees it caught."""
