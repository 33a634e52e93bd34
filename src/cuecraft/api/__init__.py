"""The Python interface: scikit-learn classifiers, families of tasks, and the names that papers use."""
