"""xgboost_cancer: a Flower app."""
