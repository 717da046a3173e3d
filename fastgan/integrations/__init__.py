"""Other people's packages, made faster: each module needs the package that it is named after."""
