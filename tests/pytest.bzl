"""The tests of this package: modules that pytest runs."""

def pytest_test(name, deps, data = [], args = []):
    """A test whose module has its name.

    Args:
      name: of the module, without its ending.
      deps: the libraries that it imports.
      data: what it reads beside itself.
      args: of pytest.
    """
    native.py_test(
        name = name,
        srcs = [
            name + ".py",
            "//tests:run_pytest.py",
        ],
        args = ["$(location %s.py)" % name] + args,
        data = [
            name + ".py",
            "//:pyproject.toml",
        ] + data,
        main = "//tests:run_pytest.py",
        tags = ["needs_rules"],  # See .bazelrc.
        deps = deps,
    )
