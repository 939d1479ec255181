"""The ground floor: frozen values that every stage hands to the next, closed enums and the error tree."""
