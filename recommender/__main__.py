"""`python -m recommender`, and the console script `recommender`."""

from recommender.cli.main import main

if __name__ == "__main__":
    main()
